/*
 * Facts about the schema that were reviewed: lists of what is allowed, and the canonical policy. Below them are parts
 * of SQL for the checks in this folder.
 */

/**
 * Tables without a tenant: identities, the agencies themselves, and tables of the whole server, such as the list of
 * migrations.
 */
export const tablesWithoutTenant = [
  'tenants',
  'users',
  'account_links',
  'account_mails',
  'audit_horizon',
  'audit_retention',
  'audit_statements',
  'event_horizon',
  'job_runs',
  'object_sweep',
  'one_time_marks',
  'passkeys',
  'plans',
  'schema_compatibility',
  'second_factors',
  'sign_in_failures',
  'user_identities',
  'kysely_migration',
  'kysely_migration_lock'
]

/**
 * Functions that answer without a tenant, or across tenants (SECURITY DEFINER). All others must run with their caller's
 * rights.
 */
export const definerFunctions = [
  'add_audit_signatures(uuid[],integer[],text,bytea[])',
  'add_audit_statement(text,timestamp with time zone,integer,text,bytea)',
  'add_my_passkey(uuid,uuid,uuid,bytea,bytea,bigint,text[],text,boolean,text,bytea[],integer)',
  'advance_object_sweep(text)',
  'advance_store_fence(bigint)',
  'audit_heads_to_sign(text,uuid,integer)',
  'audit_kept_from()',
  'audit_state()',
  'break_glass_owners()',
  'changes_page(uuid,bigint,integer)',
  'changes_unseen(pg_snapshot)',
  'claim_account_mail(text[],integer,interval)',
  'claim_domains(integer,interval)',
  'claim_files(integer,interval)',
  'claim_mail(integer,interval)',
  'claim_object_sweep(interval)',
  'claim_webhook_deliveries(integer,integer,integer,interval)',
  'confirm_email_change(uuid,text)',
  'confirm_my_factor(uuid,bigint,bytea[])',
  'count_my_factor_failure(uuid)',
  'count_sign_in_failure(text)',
  'drop_audit_months()',
  'drop_audit_partitions(interval)',
  'due_files(integer)',
  'end_my_confined_identity(interval)',
  'end_my_identity(interval)',
  'end_my_sessions(uuid,uuid,interval)',
  'ensure_audit_partitions()',
  'events_after(bigint,integer)',
  'factor_keys_in_use()',
  'files_after(uuid,uuid,integer)',
  'find_account(text)',
  'find_account_link(uuid,text)',
  'find_identity(text)',
  'find_passkey(bytea)',
  'find_tenant(text)',
  'find_user_identity(boolean,text,text)',
  'forget_my_identities()',
  'forget_sign_in_failures(text)',
  'founding_wait(integer,interval)',
  'is_known_network(text,inet)',
  'known_objects(uuid[],text[],uuid[])',
  'link_my_identity(uuid,text,boolean,text,text,text)',
  'list_agencies(text,text,integer)',
  'list_jobs()',
  'list_mails(boolean,integer)',
  'list_plans()',
  'lock_my_account()',
  'mail_allowance(text,integer,interval,integer,interval,integer,interval)',
  'miscounted_storage()',
  'my_credentials()',
  'my_factor()',
  'my_factors()',
  'my_identities()',
  'my_passkeys()',
  'my_sessions(interval)',
  'my_sessions_with_keys(interval)',
  'my_tenants()',
  'newest_event()',
  'note_key_uses(uuid[],uuid[],timestamp with time zone[])',
  'note_session_of_mark(uuid,uuid)',
  'notice_new_device(uuid,uuid,boolean)',
  'operate_account(uuid,text,interval)',
  'operate_identity(uuid,uuid,interval)',
  'operate_mail(uuid,text)',
  'peppers_in_use()',
  'place_events(integer)',
  'prepare_account_mail(uuid,integer,interval,integer,interval,interval)',
  'provider_keys_in_use()',
  'prune_audit_seals(integer)',
  'purge_tenant()',
  'queue_agency_news(text,jsonb)',
  'queue_agency_notice(text,jsonb,text[])',
  'queue_notice(text,jsonb)',
  'record_job(text,text)',
  'record_my_event(text,jsonb)',
  'record_my_factor_change(text,uuid,uuid)',
  'record_my_factor_change(text,uuid,uuid,jsonb)',
  'release_address(text)',
  'remove_my_factor()',
  'remove_my_passkey(uuid)',
  'remove_my_totp()',
  'rename_my_passkey(uuid,text)',
  'renew_my_recovery_codes(uuid,bytea[])',
  'replay_mark(uuid)',
  'request_email_change(text,text,text,uuid,interval)',
  'request_password_reset(text,text,uuid,jsonb)',
  'request_verification(text,uuid)',
  'required_step()',
  'revocations_page(uuid,bigint,integer)',
  'revocations_since(xid8)',
  'revocations_unseen(pg_snapshot)',
  'seal_audit(interval)',
  'seal_audit_events(bigint,bytea,bytea)',
  'set_plan(text,integer,integer,bigint)',
  'settle_account_mail(uuid,integer,text,text,interval)',
  'start_my_factor(uuid,bytea,text)',
  'store_fence()',
  'sweep(integer)',
  'sweep_account_mails(integer)',
  'sweep_events(integer)',
  'sweep_idempotency_keys(integer)',
  'sweep_invitations(integer)',
  'sweep_one_time_marks(integer)',
  'sweep_outbox(integer)',
  'sweep_sessions(integer,interval)',
  'sweep_sign_in_failures(integer)',
  'sweep_webhooks(integer)',
  'tenant_entry(uuid)',
  'tenant_limits(uuid)',
  'touch_my_identity(uuid,text)',
  'unlink_my_identity(uuid)',
  'upkeep()',
  'use_account_link(uuid,text)',
  'use_my_factor(uuid,bigint,bytea,uuid,bytea,text)',
  'use_my_passkey(uuid,uuid,bigint,boolean)',
  'use_once(uuid,interval)',
  'webhook_backlog()',
  'webhook_keys_in_use()'
]

/** Functions that only triggers call. The server may not call them. */
export const triggerFunctions = [
  'end_keys_of_disabled()',
  'end_keys_of_member()',
  'forget_account()',
  'forget_agency_identities()',
  'forget_factor_failures()',
  'forget_identities()',
  'forget_provider_identities()',
  'forget_tenant_keys()',
  'forget_tenant_sign_in()',
  'forget_webhooks()',
  'keep_break_glass_factor()',
  'keep_break_glass_owner()',
  'keep_enforced_provider()',
  'note_changes()',
  'note_event()',
  'publish_disabled()',
  'refuse_renewal()',
  'remove_factor()',
  'remove_sessions()',
  'replace_revocation()'
]

/** The predicate `tenant_id = (select current_tenant_id())`, as PostgreSQL prints it. */
export const canonicalPredicate = '(tenant_id = ( SELECT current_tenant_id() AS current_tenant_id))'

/** The permissive policies for the server's role on `users` and `tenants`, whose rows belong to no single tenant. */
export const reviewedPolicies = [
  ['tenants', 'tenant_isolation', 'ALL', '(id = ( SELECT current_tenant_id() AS current_tenant_id))'],
  ['users', 'own_insert', 'INSERT', '(id = ( SELECT current_user_id() AS current_user_id))'],
  ['users', 'own_update', 'UPDATE', '(id = ( SELECT current_user_id() AS current_user_id))'],
  [
    'users',
    'visible',
    'SELECT',
    '((id = ( SELECT current_user_id() AS current_user_id)) OR (EXISTS ( SELECT FROM memberships m WHERE ((m.tenant_id = ( SELECT current_tenant_id() AS current_tenant_id)) AND (m.user_id = users.id)) OFFSET 0)))'
  ]
]

export type CatalogueCheck = {
  id: string
  /** The code under which the doctor reports what the check finds. */
  code: string
  title: string
  /** A query with one row for each defect. Its column `name` names the object. */
  text: string
}

export const quote = (text: string) => `'${text.replaceAll("'", "''")}'`
export const list = (texts: readonly string[]) => `array[${texts.map(quote).join(', ')}]::text[]`

export const ours = (schema: string) => `${schema}::regnamespace::text !~ '^(pg_|information_schema)'`
export const isTable = `c.relkind in ('r', 'p', 'f') and ${ours('c.relnamespace')}`
export const hasTenant = (table: string) =>
  `exists (select from pg_attribute a where a.attrelid = ${table} and a.attname = 'tenant_id' and not a.attisdropped)`
export const appMay = (oid: string) =>
  `(has_table_privilege('aggios_app', ${oid}, 'select, insert, update, delete, truncate, references, trigger')
    or has_any_column_privilege('aggios_app', ${oid}, 'select, insert, update, references'))`
/** Whether the roles of a row of pg_policies include the server's. */
export const meetsApp = `(p.roles && '{public}' or exists (
  select from unnest(p.roles) r join pg_roles on rolname = r where pg_has_role('aggios_app', pg_roles.oid, 'member')))`
export const carriesTenant = `exists (
  select from unnest(f.conkey, f.confkey) as k (here, there)
  join pg_attribute a on a.attrelid = f.conrelid and a.attnum = k.here and a.attname = 'tenant_id'
  join pg_attribute b on b.attrelid = f.confrelid and b.attnum = k.there
    and b.attname = case when f.confrelid = 'tenants'::regclass then 'id' else 'tenant_id' end)`
export const oneLine = (expression: string) => `regexp_replace(${expression}, '\\s+', ' ', 'g')`
