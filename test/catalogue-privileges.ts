import { type Defect, goodTable } from './catalogue-defects.ts'

/*
 * Defects that the checks of keys, privileges and functions must find, for test/catalogue-checks.ts.
 */

export const keyAndPrivilegeDefects: Record<string, readonly Defect[]> = {
  C8: [
    {
      title: 'a key without the tenant',
      plant: `${goodTable('parents')} alter table parents add unique (id);
        ${goodTable('children')} alter table children add constraint bad_fk foreign key (id) references parents (id)`,
      finds: 'bad_fk'
    },
    {
      title: 'a key that has the tenant in the wrong place',
      plant: `${goodTable('parents')} ${goodTable('children')}
        alter table children add constraint bad_fk foreign key (id, tenant_id) references parents (tenant_id, id)`,
      finds: 'bad_fk'
    }
  ],
  C9: [
    {
      title: 'a key that is unique among all tenants',
      plant: `${goodTable('documents')} create unique index files_key on documents (key)`,
      finds: 'files_key'
    },
    {
      title: 'an expression that is',
      plant: `${goodTable('documents')} create unique index files_key on documents (lower(key), tenant_id)`,
      finds: 'files_key'
    },
    {
      title: 'an exclusion that is',
      plant: `${goodTable('documents')} alter table documents add constraint files_key exclude (key with =)`,
      finds: 'files_key'
    },
    {
      title: 'a primary key that is',
      plant: `${goodTable('documents')} alter table documents drop constraint documents_pkey; alter table documents add primary key (id)`,
      finds: 'documents_pkey'
    },
    {
      title: 'the tenant as a passenger',
      plant: `${goodTable('documents')} create unique index files_key on documents (key) include (tenant_id)`,
      finds: 'files_key'
    }
  ],
  C10: [
    { title: 'TRUNCATE', plant: 'grant truncate on sessions to aggios_app', finds: 'sessions' },
    {
      title: 'REFERENCES to one column',
      plant: 'grant references (id) on sessions to aggios_app',
      finds: 'sessions'
    },
    { title: 'TRIGGER, by way of everybody', plant: 'grant trigger on users to public', finds: 'users' },
    {
      title: 'CREATE on the schema',
      plant: 'grant create on schema public to aggios_app',
      finds: 'public: create',
      as: 'postgres'
    },
    {
      title: 'temporary tables, as PostgreSQL has it by default',
      plant: `do $$ begin execute format('grant temporary on database %I to public', current_database()); end $$`,
      finds: 'database: temporary'
    },
    {
      title: 'CREATE on the database',
      plant: `do $$ begin execute format('grant create on database %I to aggios_app', current_database()); end $$`,
      finds: 'database: create'
    }
  ],
  C11: [
    {
      title: 'one that claims it for speed',
      plant: `create function bad_leakproof(value text) returns boolean language sql immutable leakproof return value = 'x';
        alter function bad_leakproof(text) owner to aggios_owner`,
      finds: 'bad_leakproof(text)',
      as: 'postgres'
    }
  ],
  C12: [
    {
      title: "a superuser's view",
      plant: 'create view bad_view with (security_invoker = true) as select * from sessions',
      finds: 'bad_view',
      as: 'postgres'
    },
    {
      title: "a superuser's function under a name on the list",
      plant: `alter function find_tenant(text) owner to postgres`,
      finds: 'find_tenant(text)',
      as: 'postgres'
    },
    {
      title: 'an owner that is exempt',
      plant: 'alter role aggios_owner bypassrls',
      finds: 'memberships',
      as: 'postgres'
    },
    {
      title: "a superuser's database",
      plant: `do $$ begin execute format('alter database %I owner to postgres', current_database()); end $$`,
      finds: 'database',
      as: 'postgres'
    }
  ],
  'row security': [
    {
      title: 'the directory is exempt too',
      plant: 'alter role aggios_directory bypassrls',
      finds: 'aggios_directory',
      as: 'postgres'
    },
    {
      title: 'backups obey row security, and would be empty',
      plant: 'alter role aggios_backup nobypassrls',
      finds: 'aggios_backup',
      as: 'postgres'
    },
    {
      title: 'the owner may become it, without inheriting it',
      plant: 'grant aggios_backup to aggios_owner with inherit false, set true',
      finds: 'member: aggios_owner',
      as: 'postgres'
    },
    {
      title: 'it may write everything',
      plant: 'grant pg_write_all_data to aggios_backup',
      finds: 'granted: pg_write_all_data',
      as: 'postgres'
    },
    { title: 'it writes one column', plant: 'grant update (name) on users to aggios_backup', finds: 'users' },
    {
      title: 'it calls what runs as the directory',
      plant: 'set local role aggios_directory; grant execute on function find_identity(text) to aggios_backup',
      finds: 'find_identity(text)',
      as: 'postgres'
    }
  ],
  'definer owners': [
    {
      title: 'a function that was never handed over',
      plant: 'alter function find_identity(text) owner to aggios_owner',
      finds: 'find_identity(text)',
      as: 'postgres'
    },
    {
      title: 'one that was handed over too much',
      plant: 'alter function ensure_audit_partitions() owner to aggios_directory',
      finds: 'ensure_audit_partitions()',
      as: 'postgres'
    }
  ],
  'definer grants': [
    {
      title: 'the default, which is everybody',
      plant: `create function careless() returns integer language sql security definer return 1`,
      finds: 'careless()'
    },
    {
      title: 'an explicit grant',
      plant: 'set local role aggios_directory; grant execute on function find_identity(text) to public',
      finds: 'find_identity(text)',
      as: 'postgres'
    }
  ],
  'definer search path': [
    {
      title: 'a body that is looked up when it runs',
      plant: `create function loose() returns bigint language sql security definer as 'select count(*) from sessions'`,
      finds: 'loose()'
    },
    {
      title: 'temporary tables before ours',
      plant: 'alter function ensure_audit_partitions() set search_path = public',
      finds: 'ensure_audit_partitions()'
    }
  ],
  'password columns': [
    { title: 'all of users', plant: 'grant select on users to aggios_app', finds: 'password_hash' },
    { title: 'one column, to everybody', plant: 'grant select (pepper_id) on users to public', finds: 'pepper_id' }
  ],
  'audit is append-only': [
    {
      title: 'one column can be changed',
      plant: 'grant update (detail) on audit_events to aggios_app',
      finds: 'audit_events: update'
    },
    { title: 'DELETE', plant: 'grant delete on audit_events to aggios_app', finds: 'audit_events: delete' },
    { title: 'TRUNCATE', plant: 'grant truncate on audit_events to public', finds: 'audit_events: truncate' },
    {
      title: 'DELETE from one month',
      plant: `do $$ begin
        execute (select format('alter table %I rename to bad; grant delete on bad to aggios_app', inhrelid::regclass)
          from pg_inherits where inhparent = 'audit_events'::regclass order by inhrelid limit 1);
      end $$`,
      finds: 'bad: delete'
    }
  ],
  cascades: [
    {
      title: 'memberships that go with their user',
      plant: `alter table memberships drop constraint memberships_user_id_fkey,
        add constraint bad_cascade foreign key (user_id) references users on delete cascade`,
      finds: 'bad_cascade'
    },
    {
      title: 'everything that goes with its tenant',
      plant: `alter table memberships drop constraint memberships_tenant_id_fkey,
        add constraint bad_cascade foreign key (tenant_id) references tenants on delete cascade`,
      finds: 'bad_cascade'
    },
    {
      title: 'a name that is cleared, also on change',
      plant: `${goodTable('notes')} alter table notes add column author uuid,
        add constraint bad_cascade foreign key (author) references users on update cascade`,
      finds: 'bad_cascade'
    }
  ],
  'audit has no keys': [
    {
      title: 'a key to its tenant',
      plant: 'alter table audit_events add constraint bad_history foreign key (tenant_id) references tenants',
      finds: 'bad_history'
    }
  ]
}
