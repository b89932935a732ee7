import type { DatabaseUrls } from './databases.ts'
import { allRows, type TestApp } from './harness.ts'

/** Creates the partition of one month of the audit log, as the product does it. */
export async function createMonth(database: DatabaseUrls, month: string): Promise<void> {
  await allRows(
    database,
    `do $$
    declare
      first constant date := ${month};
      name constant text := 'audit_events_' || to_char(first, 'yyyy_mm');
    begin
      if to_regclass(name) is null then
        execute format('create table %I (like audit_events including defaults including constraints)', name);
        execute format('alter table %I owner to aggios_owner', name);
        execute format('alter table %I enable row level security', name);
        execute format('alter table %I force row level security', name);
        execute format('alter table audit_events attach partition %I for values from (%L) to (%L)',
          name, first::text || ' 00:00+00', (first + interval '1 month')::date::text || ' 00:00+00');
      end if;
    end $$`
  )
}

/**
 * Moves the events of the last minute into the past, right behind the sealed ones, so that they are old enough to be
 * sealed. Sealed events do not move.
 */
export async function age(app: TestApp): Promise<void> {
  await createMonth(app.database, "date_trunc('month', now() - interval '20 hours')::date")
  await allRows(
    app.database,
    `update audit_horizon set sealed_to = coalesce((select max(to_at) from audit_seals), '-infinity');
     update audit_events e set created_at = greatest(h.sealed_to, now() - interval '20 hours') + interval '1 second'
       + (e.created_at - (now() - interval '1 minute')) from audit_horizon h where e.created_at > now() - interval '1 minute'`
  )
}

/** Seals the events that were recorded since the last call. */
export async function seal(app: TestApp): Promise<void> {
  await age(app)
  await app.housekeeping.run()
}
