-- Makes the database that searches share, and its user; MLflow's own are made with the volume.
-- What is there already stays; the password is set anew.
\getenv password SEARCH_PASSWORD
SELECT 'CREATE ROLE search LOGIN' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'search') \gexec
ALTER ROLE search PASSWORD :'password';
SELECT 'CREATE DATABASE search OWNER search' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'search') \gexec
REVOKE CONNECT ON DATABASE mlflow FROM PUBLIC;
