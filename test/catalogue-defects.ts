import { hasTenant, isTable } from '../db/catalogue/reviewed.ts'

/*
 * What tests of the schema share: the defects that a check must find, and the list of the tables of tenants.
 */

export type Defect = {
  /** A mistake that a change of the schema could make. */
  title: string
  plant: string
  /** The name under which the check reports it. */
  finds: string
  /** The role that makes the change. Default: the owner of the tables. */
  as?: 'postgres'
}

/** A table without a defect, for plants that add one of another kind. */
export const goodTable = (name: string) => `
  create table ${name} (
    tenant_id uuid not null default current_tenant_id() references tenants,
    id        uuid not null,
    key       text,
    primary key (tenant_id, id)
  );
  alter table ${name} enable row level security;
  alter table ${name} force row level security;
  create policy tenant_isolation on ${name}
    using (tenant_id = (select current_tenant_id())) with check (tenant_id = (select current_tenant_id()));
  grant select on ${name} to aggios_app;`

/** Lists the tables that have a tenant, from PostgreSQL's catalogue, with their columns, keys and partitions. */
export const tenantTables = `
  select c.relname as name, array(select a.attname::text from pg_attribute a
      where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped order by a.attnum) as columns,
    array(select a.attname::text from pg_attribute a where a.attrelid = c.oid and a.attidentity = 'a') as generated,
    array(select a.attname::text from pg_index i join pg_attribute a on a.attrelid = c.oid and a.attnum = any (i.indkey)
      where i.indrelid = c.oid and i.indisprimary) as key,
    array(select p.inhrelid::regclass::text from pg_inherits p where p.inhparent = c.oid order by 1) as partitions
  from pg_class c where ${isTable} and not c.relispartition and ${hasTenant('c.oid')} order by c.relname`
