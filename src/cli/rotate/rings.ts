import type { TenantGate } from '../../../db/gate/gate.ts'
import { systemScope } from '../../../db/gate/gate-query.ts'
import { signWithNewKey } from '../../../db/queries/audit-signing.ts'
import { peppersInUse } from '../../../db/queries/directory.ts'
import { providerKeysInUse } from '../../../db/queries/sign-in/identity-providers.ts'
import { factorKeysInUse } from '../../../db/queries/sign-in/second-factors.ts'
import { createAuditKeys } from '../../auth/audit-keys.ts'
import { list } from '../../config/value-readers.ts'
import { createKeyRing } from '../../keys.ts'
import { Refusal } from '../operator.ts'
import { reencryptAgencySecrets } from './provider.ts'
import { newSecret, type Rotation } from './rotation.ts'
import { openSecretFile, type Progress, type SecretFile } from './secret-file.ts'

/** An invitation is signed when its mail is sent, and can be used for so long. */
const invitationSeconds = 7 * 86_400

/** A list of keys in a file. `purpose` makes the ids of its keys: those in tokens, and those that are stored with passwords. */
export type Ring = { name: string; purpose: string }

export const tokenKeys: Ring = { name: 'JWT_SECRET', purpose: 'access token' }
export const peppers: Ring = { name: 'PASSWORD_PEPPER', purpose: 'pepper' }

/** What is stored that needs a pepper. Each kind has ids of its own for the same pepper. */
const storedKinds = [
  { kind: 'passwords', inUse: peppersInUse, ring: peppers },
  { kind: 'second factors', inUse: factorKeysInUse, ring: { ...peppers, purpose: 'second factor' } },
  { kind: 'secrets of providers', inUse: providerKeysInUse, ring: { ...peppers, purpose: 'identity provider' } }
] as const

/**
 * Puts a new key in front of a ring, in two steps, because a process must know a key before another one uses it: the new key
 * is appended, and when every process has it, it becomes the first. The others stay for what was made with them.
 *
 * The notes come before each change, and name the new key by its id. So a run after an interruption finds that key wherever it
 * stands, and never takes an old one for it.
 */
async function switchRing({ env, fleet, step }: Rotation, ring: Ring): Promise<Progress> {
  const file = openSecretFile(env, ring.name)
  file.requireWritable()
  let keys = keysIn(file)
  let progress = progressOf(file, ring)
  if (progress === undefined) {
    const added = newSecret()
    progress = file.remember({ step: 'appended', key: idOf(added, ring) })
    keys = [...keys, added]
    file.write(keys.join(','))
  }
  await fleet.waitFor(ring.name, keys)
  if (progress.step === 'appended') {
    step('every process knows the new key')
    const { key = '' } = progress
    const isNew = (secret: string) => idOf(secret, ring) === key
    keys = [...keys.filter(isNew), ...keys.filter((each) => !isNew(each))]
    file.write(keys.join(','))
    await fleet.waitFor(ring.name, keys)
    progress = file.remember({ step: 'switched', key })
  }
  step('every process uses the new key, and still knows the old one')
  return progress
}

/**
 * The notes of a ring whose first key every process uses, so that the others may be dropped. Undefined when they were dropped
 * by a run that was interrupted then. A ring of several keys without notes was changed by hand, and counts from now on.
 */
async function requireSwitched({ env, fleet }: Rotation, ring: Ring): Promise<Progress | undefined> {
  const file = openSecretFile(env, ring.name)
  file.requireWritable()
  const keys = keysIn(file)
  const [first = ''] = keys
  const progress = progressOf(file, ring)
  if (progress?.step === 'appended') {
    throw new Refusal('there is nothing to finish: the new key is not in front yet. Run rotate again first')
  }
  if (keys.length === 1 && file.progress()?.step !== 'switched') {
    throw new Refusal(`there is nothing to finish: ${file.path} has one key only`)
  }
  await fleet.waitFor(ring.name, keys)
  if (keys.length === 1) return undefined
  return progress ?? file.remember({ step: 'switched', key: idOf(first, ring) })
}

/** The notes, where they belong to the keys that are in the file. */
function progressOf(file: SecretFile, ring: Ring): Progress | undefined {
  const progress = file.progress()
  const ids = keysIn(file).map((secret) => idOf(secret, ring))
  const place = ids.indexOf(progress?.key ?? '')
  return ids.length > 1 && (place === 0 || (place > 0 && progress?.step === 'appended')) ? progress : undefined
}

function keysIn(file: SecretFile): string[] {
  const keys = list(file.read())
  if (keys.length === 0) throw new Refusal(`${file.path} has no key`)
  return keys
}

/** The ids of secrets, in their order. */
export const keysOf = (secrets: readonly string[], ring: Ring) => secrets.map((secret) => idOf(secret, ring))

const idOf = (secret: string, { purpose }: Ring) => createKeyRing([secret], purpose).first.id

/** Drops all keys but the first. */
async function dropOld({ env, fleet, step }: Rotation, { name }: Ring): Promise<string> {
  const file = openSecretFile(env, name)
  const [first = ''] = keysIn(file)
  file.write(first)
  await fleet.waitFor(name, [first])
  file.forget()
  step('no process knows the old key any more')
  return 'done: the old key is of no use any more'
}

/** What was signed with the old key of tokens has expired by then. */
function dropTime({ config }: Rotation, { at }: Progress): Date {
  const seconds = Math.max(config.refreshTokenTtl, config.accessTokenTtl, invitationSeconds)
  return new Date(Date.parse(at) + seconds * 1000)
}

export async function rotateTokens(rotation: Rotation): Promise<string> {
  requireOwnPepper(rotation)
  const time = dropTime(rotation, await switchRing(rotation, tokenKeys))
  return `The old key may be dropped from ${time.toISOString()} on: rotate jwt --finish`
}

export async function finishTokens(rotation: Rotation, { now }: { now: boolean }): Promise<string> {
  requireOwnPepper(rotation)
  const progress = await requireSwitched(rotation, tokenKeys)
  const time = progress && dropTime(rotation, progress)
  if (!now && time && time.getTime() > Date.now()) {
    throw new Refusal(
      `the old key may be dropped from ${time.toISOString()} on, when no session needs it any more. With --now it is dropped at once, and who has not come since the new key is signed out`
    )
  }
  return dropOld(rotation, tokenKeys)
}

/** Without a setting of its own, the pepper is derived from the key of tokens, and would be dropped with it. */
function requireOwnPepper({ env }: Rotation): void {
  if (env.PASSWORD_PEPPER || env.PASSWORD_PEPPER_FILE) return
  throw new Refusal('PASSWORD_PEPPER is not set: passwords would be lost with the key of tokens that they depend on')
}

export async function rotatePepper(rotation: Rotation, gate: TenantGate): Promise<string> {
  await switchRing(rotation, peppers)
  const needed = await moveStored(rotation, gate)
  return `Passwords and second factors move to the new pepper when their owners sign in. ${stateOf(needed)}: rotate pepper --finish`
}

export async function finishPepper(rotation: Rotation, gate: TenantGate): Promise<string> {
  // a process that still used the old pepper would store it again, after it was looked for
  await requireSwitched(rotation, peppers)
  const needed = await moveStored(rotation, gate)
  if (needed.length > 0) throw new Refusal(`${stateOf(needed)}: the old pepper can't be dropped yet`)
  return dropOld(rotation, peppers)
}

const stateOf = (needed: readonly string[]) =>
  needed.length > 0 ? `Some ${needed.join(' and ')} still need the old one` : 'Nothing needs the old one any more'

/** Moves to the first pepper what can be moved without its owner, and names what still needs another one. */
async function moveStored({ env }: Rotation, gate: TenantGate): Promise<string[]> {
  const keys = keysIn(openSecretFile(env, peppers.name))
  await reencryptAgencySecrets(gate, keys)
  await signWithNewKey(gate, createAuditKeys(keys))
  const stored = await readStoredKeys(gate)
  return stored.filter(({ ring, ids }) => ids.some((id) => id !== keysOf(keys, ring)[0])).map(({ kind }) => kind)
}

/** For each kind of what is stored, the ids of the keys that it needs. */
export async function readStoredKeys(gate: TenantGate): Promise<{ kind: string; ring: Ring; ids: string[] }[]> {
  const stored: { kind: string; ring: Ring; ids: string[] }[] = []
  for (const { kind, inUse, ring } of storedKinds) {
    const rows = await gate.query(systemScope, inUse, {})
    stored.push({ kind, ring, ids: rows.map(({ id }) => id) })
  }
  return stored
}
