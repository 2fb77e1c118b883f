<?php // composer require php-amqplib/php-amqplib; RABBITMQ_HOST=… RABBITMQ_USER=… RABBITMQ_PASSWORD=… TOKEN=… php submit.php orders.json
require getenv('AUTOLOAD') ?: __DIR__ . '/vendor/autoload.php';

use PhpAmqpLib\Connection\AMQPStreamConnection;
use PhpAmqpLib\Message\AMQPMessage;
use PhpAmqpLib\Wire\AMQPTable;

$connection = new AMQPStreamConnection(getenv('RABBITMQ_HOST'), getenv('RABBITMQ_PORT') ?: 5672, getenv('RABBITMQ_USER'), getenv('RABBITMQ_PASSWORD'));
$channel = $connection->channel();
$channel->confirm_select();
$channel->set_nack_handler(function () { throw new RuntimeException('RabbitMQ did not take a message: send the orders again'); });
// The same arguments as the orchestrator's: RabbitMQ refuses others.
$arguments = new AMQPTable(['x-queue-type' => 'quorum', 'x-delivery-limit' => 1000000]);
$channel->queue_declare('intents', false, true, false, false, false, $arguments);
foreach (array_chunk(json_decode(file_get_contents($argv[1])), 100) as $intents) {
    $id = bin2hex(random_bytes(16));
    // The task orchestrator.submit(intents, token) in Celery's message protocol 2.
    $body = json_encode([[$intents, getenv('TOKEN')], new stdClass(), new stdClass()]);
    $channel->basic_publish(new AMQPMessage($body, [
        'application_headers' => new AMQPTable(['task' => 'orchestrator.submit', 'id' => $id, 'lang' => 'php']),
        'content_type' => 'application/json', 'content_encoding' => 'utf-8', 'correlation_id' => $id,
        'delivery_mode' => AMQPMessage::DELIVERY_MODE_PERSISTENT,
    ]), '', 'intents');
}
$channel->wait_for_pending_acks(30.0); // RabbitMQ has stored them all
$connection->close();
