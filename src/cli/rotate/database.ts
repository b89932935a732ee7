import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import { connectionTo } from '../../../db/gate/connection-settings.ts'
import { readSettings as readChosen } from '../../config/environment.ts'
import { unencryptedDatabases } from '../../config/production.ts'
import { secret } from '../../config/settings.ts'
import { postgresUrl } from '../../config/value-readers.ts'
import { Refusal } from '../operator.ts'
import { newSecret, type Rotation } from './rotation.ts'
import { scramVerifier } from './scram.ts'
import { openSecretFile, type SecretFile } from './secret-file.ts'

/** The two roles that the server may log in as. Both have the same rights, and one of them is locked at most times. */
const logins = ['aggios_app', 'aggios_app_b'] as const
const timeouts = { statement_timeout: 10_000, lock_timeout: 5000 }
const drainMs = 40_000

/**
 * Makes the servers log in as the other role, with a new password. The one before stays until `finishDatabase`, so no
 * connection is refused meanwhile.
 *
 * A run after an interruption begins anew while any file still names the old role. The password that a file already has for the
 * new role stays then, because servers may use it.
 */
export async function rotateDatabase(rotation: Rotation): Promise<string> {
  const { fleet, step } = rotation
  const files = urlFiles(rotation)
  const [file] = files
  for (const each of files) each.requireWritable()
  const from = file.progress()?.from ?? roleIn(file)
  const to = from === logins[0] ? logins[1] : logins[0]
  if (files.some((each) => roleIn(each) === from)) {
    const switched = files.find((each) => roleIn(each) === to)
    const password = switched ? decodeURIComponent(new URL(switched.read()).password) : newSecret()
    await asAdministrator(rotation, async (client) => {
      const { rows } = await client.query(
        "select pg_has_role($1, 'aggios_app', 'usage') as usable from pg_roles where rolname = $1",
        [to]
      )
      if (!rows[0]?.usable)
        throw new Refusal(`there is no role ${to} with the rights of aggios_app: run db/roles.sql again`)
      // roles belong to the whole server: another installation, or a server that --listener does not name, may use this one
      const open = switched ? 0 : await countConnections(client, to)
      if (open > 0)
        throw new Refusal(`${open} connections of ${to} are open: something uses it, and would lose its password`)
      // the notes come first: without them, the next run could not tell the old role from the new one
      file.remember({ step: 'switched', from })
      await client.query(`alter role ${to} login password ${client.escapeLiteral(scramVerifier(password))}`)
    })
    step(`${to} has a new password`)
    for (const each of files) each.write(withLogin(each.read(), to, password))
  }
  for (const { name, read } of files) await fleet.waitFor(name, [read()])
  step(`every process logs in as ${to}`)
  return `${from} can be locked now: rotate database --finish`
}

/** Locks the role that no server uses any more, when its last connection has ended. */
export async function finishDatabase(rotation: Rotation): Promise<string> {
  const files = urlFiles(rotation)
  const [file] = files
  const from = file.progress()?.from
  if (from === undefined) throw new Refusal('there is nothing to finish: no other role is in use yet')
  for (const each of files) {
    // the connections of a replica are not seen in pg_stat_activity of the primary
    if (roleIn(each) === from) throw new Refusal(`${each.path} still names ${from}: run rotate database again`)
  }
  for (const { name, read } of files) await rotation.fleet.waitFor(name, [read()])
  await asAdministrator(rotation, async (client) => {
    for (const deadline = performance.now() + drainMs; ; ) {
      const open = await countConnections(client, from)
      if (open === 0) break
      if (performance.now() > deadline)
        throw new Refusal(`${open} connections of ${from} are still open: something else uses it`)
      await sleep(200)
    }
    await client.query(`alter role ${client.escapeIdentifier(from)} nologin password null`)
  })
  file.forget()
  return `done: ${from} is locked`
}

async function countConnections(client: pg.Client, role: string): Promise<number> {
  const { rows } = await client.query('select count(*)::int as open from pg_stat_activity where usename = $1', [role])
  return rows[0].open
}

/** The replica has the same roles, so its URL changes with the other one. */
function urlFiles({ config, env }: Rotation): [SecretFile, ...SecretFile[]] {
  const main = openSecretFile(env, 'DATABASE_URL')
  return config.databaseReplicaUrl === undefined ? [main] : [main, openSecretFile(env, 'DATABASE_REPLICA_URL')]
}

function roleIn(file: SecretFile): (typeof logins)[number] {
  const { username } = new URL(file.read())
  const role = logins.find((each) => each === username)
  if (!role) throw new Refusal(`${file.path} names the role ${username}: this works for ${logins.join(' and ')} only`)
  return role
}

function withLogin(text: string, role: string, password: string): string {
  const url = new URL(text)
  url.username = role
  url.password = password
  return url.href
}

/** A role that may change the two others: it is given to this command, and to no server. */
async function asAdministrator({ config, env }: Rotation, work: (client: pg.Client) => Promise<void>): Promise<void> {
  const { values, problems } = readChosen(env, { url: secret('DATABASE_ADMIN_URL', postgresUrl) })
  if (config.nodeEnv === 'production') problems.push(...unencryptedDatabases({ DATABASE_ADMIN_URL: values.url }))
  if (problems.length > 0) throw new Refusal(problems.join('\n'))
  if (values.url === undefined) {
    throw new Refusal(
      'DATABASE_ADMIN_URL: must lead to the database as a role that may change aggios_app and aggios_app_b'
    )
  }
  const client = new pg.Client(connectionTo(values.url, timeouts))
  await client.connect()
  try {
    await work(client)
  } finally {
    await client.end()
  }
}
