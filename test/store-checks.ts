import { randomBytes } from 'node:crypto'
import type { Test } from 'tap'
import { fileKey, markKey } from '../src/files/store/keys.ts'
import { partBytes } from '../src/files/store/object-writer.ts'
import { form } from './forms.ts'
import { allRows, type Tenant, type TestApp } from './harness.ts'
import type { ScriptedS3 } from './scripted-s3.ts'

/*
 * Checks for tests in which the object store fails: what must hold meanwhile, and afterwards.
 */

export const small = randomBytes(1000)
export const large = randomBytes(partBytes + 1)
export const upload = (tenant: Tenant, content: Buffer) =>
  tenant.send({ method: 'POST', url: '/api/v1/files', ...form([{ name: 'file', filename: 'a.bin', content }]) })

/** Everything but files is served, and health reports the store as down. */
export async function servesTheRest(t: Test, tenant: Tenant): Promise<void> {
  t.equal((await tenant.send('/api/v1/users/me')).statusCode, 200)
  t.equal((await tenant.send('/api/v1/files')).statusCode, 200)
  t.match((await tenant.anonymous('/api/v1/health')).json(), {
    status: 'degraded',
    checks: { database: { status: 'ok' }, storage: { status: 'down' } }
  })
  t.equal((await tenant.anonymous('/api/v1/health/ready')).statusCode, 200, 'and is sent requests')
}

/** Runs the sweep as if two hours had passed, and checks that every file has its object and every object its file. */
export async function matchesAfterSweep(t: Test, app: TestApp, stub: ScriptedS3): Promise<void> {
  for (const object of stub.objects.values()) object.modified_at = new Date(Date.now() - 7_200_000)
  for (let round = 0; round < 2; round++) {
    await allRows(app.database, "update files set expires_at = now() - interval '1 second' where status <> 'ready'")
    await allRows(app.database, 'update object_sweep set due_at = now()')
    await app.objectSweep.run()
  }
  const rows = await allRows(app.database, 'select tenant_id, id, status, size::int from files')
  const expected = rows.map(({ tenant_id, id, size }) => `${fileKey(tenant_id, id)} ${size}`).sort()
  t.strictSame(
    rows.filter(({ status }) => status !== 'ready'),
    []
  )
  const stored = [...stub.objects].filter(([key]) => key !== markKey)
  t.strictSame(stored.map(([key, { content }]) => `${key} ${content.length}`).sort(), expected)
  const counted = await allRows(app.database, 'select coalesce(sum(bytes), 0)::int as bytes from storage_usage')
  t.equal(
    counted[0].bytes,
    rows.reduce((sum, { size }) => sum + size, 0)
  )
}
