-- The roles of an installation. Run by a superuser in the installation's database; harmless when repeated:
--
--   PGOPTIONS="-c orchestrator.owner_password=… -c orchestrator.application_password=…" psql --file roles.sql …
--
-- orchestrator_owner  owns the database's objects: `orchestrator migrate` and `orchestrator archive`.
-- orchestrator_app    reads and writes rows: API, workers, scheduler. `orchestrator migrate` grants it what it needs.
--
-- Neither is a superuser, makes databases or roles, reads files of the server or runs programs there. What an installation of an earlier
-- version has made under another role is given to the owner. Without a password (a parameter left out) a role keeps the one that it has.

DO $$
DECLARE
    name text;
    password text;
    object record;
BEGIN
    FOREACH name IN ARRAY ARRAY['orchestrator_owner', 'orchestrator_app'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I', name);
        END IF;
        EXECUTE format('ALTER ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS', name);
    END LOOP;
    FOR name, password IN VALUES
        ('orchestrator_owner', nullif(current_setting('orchestrator.owner_password', true), '')),
        ('orchestrator_app', nullif(current_setting('orchestrator.application_password', true), ''))
    LOOP
        IF password IS NOT NULL THEN
            EXECUTE format('ALTER ROLE %I PASSWORD %L', name, password);
        END IF;
    END LOOP;

    EXECUTE format('ALTER DATABASE %I OWNER TO orchestrator_owner', current_database());
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO orchestrator_app', current_database());
    ALTER SCHEMA public OWNER TO orchestrator_owner;
    REVOKE ALL ON SCHEMA public FROM PUBLIC;
    GRANT USAGE ON SCHEMA public TO orchestrator_app;

    -- Tables (their indexes and identity sequences follow them), views and free sequences; then functions.
    FOR object IN
        SELECT c.oid::regclass AS name, c.relkind AS kind
          FROM pg_class c
         WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'S')
           AND c.relowner <> 'orchestrator_owner'::regrole
           AND NOT EXISTS (SELECT FROM pg_depend d
                            WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i', 'e')
                              AND d.refclassid IN ('pg_class'::regclass, 'pg_extension'::regclass) AND c.relkind = 'S')
    LOOP
        EXECUTE format('ALTER %s %s OWNER TO orchestrator_owner',
                       CASE object.kind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END,
                       object.name);
    END LOOP;
    FOR object IN
        SELECT p.oid::regprocedure AS name
          FROM pg_proc p
         WHERE p.pronamespace = 'public'::regnamespace AND p.proowner <> 'orchestrator_owner'::regrole
           AND NOT EXISTS (SELECT FROM pg_depend d
                            WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
    LOOP
        EXECUTE format('ALTER ROUTINE %s OWNER TO orchestrator_owner', object.name);
    END LOOP;
END $$;
