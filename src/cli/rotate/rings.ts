import type { TenantGate } from '../../../db/gate/gate.ts'
import { systemScope } from '../../../db/gate/gate-query.ts'
import { signWithNewKey } from '../../../db/queries/audit-signing.ts'
import { peppersInUse } from '../../../db/queries/directory.ts'
import { providerKeysInUse } from '../../../db/queries/sign-in/identity-providers.ts'
import { factorKeysInUse } from '../../../db/queries/sign-in/second-factors.ts'
import { createAuditKeys } from '../../auth/audit-keys.ts'
import { createStoredSecrets } from '../../auth/stored-secrets.ts'
import { list } from '../../config/value-readers.ts'
import { createKeyRing } from '../../keys.ts'
import { Refusal } from '../operator.ts'
import { reencryptProviders } from './provider.ts'
import { newSecret, type Rotation } from './rotation.ts'
import { openSecretFile } from './secret-file.ts'

/** An invitation is signed when its mail is sent, and can be used for so long. */
const invitationSeconds = 7 * 86_400

/**
 * Puts a new key in front of a ring, in two steps, because a process must know a key before another one uses it: the new key
 * is appended, and when every process has it, it becomes the first. The old one stays for what was made with it.
 */
async function switchRing({ env, fleet, step }: Rotation, name: string): Promise<void> {
  const file = openSecretFile(env, name)
  const keys = list(file.read())
  if (keys.length === 0) throw new Refusal(`${file.path} has no key`)
  const progress = file.progress()
  if (progress === undefined && keys.length > 1) {
    throw new Refusal(
      `${file.path} has ${keys.length} keys already: drop those that nothing needs first, with --finish`
    )
  }
  if (progress === undefined) {
    keys.push(newSecret())
    file.write(keys.join(','))
    file.remember({ step: 'appended' })
  }
  if (progress?.step !== 'switched') {
    await fleet.waitFor(name, keys)
    step('every process knows the new key')
    file.write([keys.at(-1), ...keys.slice(0, -1)].join(','))
  }
  await fleet.waitFor(name, list(file.read()))
  if (progress?.step !== 'switched') file.remember({ step: 'switched' })
  step('every process uses the new key, and still knows the old one')
}

/** Drops all keys but the first. */
async function dropOld({ env, fleet, step }: Rotation, name: string): Promise<string> {
  const file = openSecretFile(env, name)
  const [first = ''] = list(file.read())
  file.write(first)
  file.forget()
  await fleet.waitFor(name, [first])
  step('no process knows the old key any more')
  return 'done: the old key is of no use any more'
}

/** What was signed with the old key of tokens has expired by then. */
function dropTime({ config, env }: Rotation): Date {
  const progress = openSecretFile(env, 'JWT_SECRET').progress()
  if (progress?.step !== 'switched') throw new Refusal('there is nothing to finish: no new key is in front yet')
  const seconds = Math.max(config.refreshTokenTtl, config.accessTokenTtl, invitationSeconds)
  return new Date(Date.parse(progress.at) + seconds * 1000)
}

export async function rotateTokens(rotation: Rotation): Promise<string> {
  await switchRing(rotation, 'JWT_SECRET')
  return `The old key may be dropped from ${dropTime(rotation).toISOString()} on: rotate jwt --finish`
}

export async function finishTokens(rotation: Rotation, { now }: { now: boolean }): Promise<string> {
  const time = dropTime(rotation)
  if (!now && time.getTime() > Date.now()) {
    throw new Refusal(
      `the old key may be dropped from ${time.toISOString()} on, when no session needs it any more. With --now it is dropped at once, and who has not come since the new key is signed out`
    )
  }
  return dropOld(rotation, 'JWT_SECRET')
}

export async function rotatePepper(rotation: Rotation, gate: TenantGate): Promise<string> {
  await switchRing(rotation, 'PASSWORD_PEPPER')
  const needed = await moveStored(rotation, gate)
  return `Passwords and second factors move to the new pepper when their owners sign in. ${stateOf(needed)}: rotate pepper --finish`
}

export async function finishPepper(rotation: Rotation, gate: TenantGate): Promise<string> {
  const needed = await moveStored(rotation, gate)
  if (needed.length > 0) throw new Refusal(`${stateOf(needed)}: the old pepper can't be dropped yet`)
  return dropOld(rotation, 'PASSWORD_PEPPER')
}

const stateOf = (needed: readonly string[]) =>
  needed.length > 0 ? `Some ${needed.join(' and ')} still need the old one` : 'Nothing needs the old one any more'

/** Moves to the first pepper what can be moved without its owner, and names what still needs another one. */
async function moveStored({ env }: Rotation, gate: TenantGate): Promise<string[]> {
  const peppers = list(openSecretFile(env, 'PASSWORD_PEPPER').read())
  await reencryptProviders(gate, peppers)
  await signWithNewKey(gate, createAuditKeys(peppers))
  const kinds = [
    ['passwords', peppersInUse, createKeyRing(peppers, 'pepper').first.id],
    ['second factors', factorKeysInUse, createStoredSecrets(peppers, 'second factor').first],
    ['secrets of providers', providerKeysInUse, createStoredSecrets(peppers, 'identity provider').first]
  ] as const
  const needed: string[] = []
  for (const [kind, statement, first] of kinds) {
    const stored = await gate.query(systemScope, statement, {})
    if (stored.some(({ id }) => id !== first)) needed.push(kind)
  }
  return needed
}
