import { randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { linkSeconds } from '../../files/file-links.ts'
import { openStore } from '../../files/store/configured-store.ts'
import { Refusal } from '../operator.ts'
import type { Rotation } from './rotation.ts'
import { openSecretFile } from './secret-file.ts'

export type NewKey = { accessKeyFile: string | undefined; secretKeyFile: string | undefined }

/**
 * Makes the servers use another key of the store, which somebody has made there: each store has a way of its own for that. The
 * new key must be able to do all that the product does, or nothing is changed.
 */
export async function rotateStoreKey({ config, env, fleet, step }: Rotation, given: NewKey): Promise<string> {
  const access = openSecretFile(env, 'S3_ACCESS_KEY')
  const secret = openSecretFile(env, 'S3_SECRET_KEY')
  for (const file of [access, secret]) file.requireWritable()
  const before = access.read()
  const from = access.progress()?.from ?? before
  const { accessKeyFile, secretKeyFile } = given
  if (accessKeyFile !== undefined && secretKeyFile !== undefined) {
    const [s3AccessKey, s3SecretKey] = [readGiven(accessKeyFile), readGiven(secretKeyFile)]
    if (s3AccessKey === from) throw new Refusal('this key is in use already: make a second one')
    if (s3AccessKey !== before || s3SecretKey !== secret.read()) {
      await requireWorking({ ...config, s3AccessKey, s3SecretKey })
      step('the new key works')
      access.remember({ step: 'switched', from })
      // the name comes last: while the file still has the old one, a run begins with both again
      secret.write(s3SecretKey)
      access.write(s3AccessKey)
    }
  } else if (before === from) {
    throw new Refusal('make a second key in the store, and name its two files: --access-key-file and --secret-key-file')
  }
  await fleet.waitFor('S3_ACCESS_KEY', [access.read()])
  await fleet.waitFor('S3_SECRET_KEY', [secret.read()])
  access.forget()
  const old = [...new Set([from, before])].filter((key) => key !== access.read()).join(' and ')
  const time = new Date(Date.now() + linkSeconds * 1000).toISOString()
  return `done: every process uses the new key. Disable ${old} in the store after ${time}, when links that it has signed have expired`
}

/** Writes, reads, copies, lists and removes an object with a key. Throws Refusal when the store refuses any of it. */
async function requireWorking(config: Parameters<typeof openStore>[0]): Promise<void> {
  const store = await openStore(config)
  const [key, moved] = [`key-check/${randomUUID()}`, `key-check/${randomUUID()}`]
  try {
    await store.check()
    await store.put(key, Buffer.from('a new key'))
    await store.move(key, moved)
    if ((await store.size(moved)) === undefined) throw new Error('an object that was written is not there')
    await store.list('', 1)
    const parts = await store.startParts(key)
    await store.dropParts(key, parts)
    await store.remove(moved)
  } catch (err) {
    throw new Refusal(`the new key does not work, and nothing was changed: ${(err as Error).message}`)
  } finally {
    store.close()
  }
}

/** Reads a secret that an operator has put into a file. */
export function readGiven(path: string): string {
  let text: string
  try {
    text = readFileSync(path, 'utf8').trim()
  } catch (err) {
    throw new Refusal(`${path} can't be read (${(err as NodeJS.ErrnoException).code})`)
  }
  if (text === '') throw new Refusal(`${path} is empty`)
  return text
}
