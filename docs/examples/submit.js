// Submit orders through RabbitMQ: npm install amqplib; BROKER_URL=amqp://… TOKEN=… node submit.js orders.json
const { randomUUID } = require("node:crypto");
const { readFileSync } = require("node:fs");

// The task orchestrator.submit(intents, token) in Celery's message protocol 2.
function message(intents, token) {
  const id = randomUUID();
  const body = JSON.stringify([[intents, token], {}, {}]);
  const headers = { task: "orchestrator.submit", id, lang: "js" };
  return { body, options: { headers, correlationId: id, contentType: "application/json", contentEncoding: "utf-8", persistent: true } };
}

async function main() {
  const connection = await require("amqplib").connect(process.env.BROKER_URL);
  const channel = await connection.createConfirmChannel();
  // The same arguments as the orchestrator's: RabbitMQ refuses others.
  await channel.assertQueue("intents", { arguments: { "x-queue-type": "quorum", "x-delivery-limit": 1000000 } });
  const orders = JSON.parse(readFileSync(process.argv[2], "utf8"));
  for (let start = 0; start < orders.length; start += 100) {
    const { body, options } = message(orders.slice(start, start + 100), process.env.TOKEN);
    channel.sendToQueue("intents", Buffer.from(body), options);
  }
  await channel.waitForConfirms(); // RabbitMQ has stored them all
  await connection.close();
}

if (require.main === module) main().catch((error) => { console.error(error.message); process.exit(1); });
module.exports = { message };
