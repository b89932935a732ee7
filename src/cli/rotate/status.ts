import { list } from '../../config/value-readers.ts'
import { liveSettings, nameOf } from '../../secrets/live-secrets.ts'
import type { Result } from '../operator.ts'
import type { Rotation } from './rotation.ts'
import { openSecretFile } from './secret-file.ts'

const rings: readonly string[] = ['JWT_SECRET', 'PASSWORD_PEPPER']

/** Compares each file of a secret with what the processes use. */
export async function describeSecrets({ env, fleet }: Rotation): Promise<Result> {
  const names = liveSettings.map(nameOf).filter((name) => env[`${name}_FILE`])
  const secrets = await Promise.all(
    names.map(async (name) => {
      const file = openSecretFile(env, name)
      const text = file.read()
      if (text === '') return { name, file: file.path, unused: true, behind: [] }
      const values = rings.includes(name) ? list(text) : [text]
      const { step, at } = file.progress() ?? { step: null, at: null }
      return { name, file: file.path, keys: values.length, step, since: at, behind: await fleet.behind(name, values) }
    })
  )
  const lines = secrets.map(({ name, behind, unused, step, since, keys }) => {
    if (unused) return `${name}: not used`
    const count = keys !== undefined && keys > 1 ? `, ${keys} keys` : ''
    const way = step ? `, ${step} since ${since}` : ''
    return `${name}: ${behind.length === 0 ? 'in use everywhere' : behind.join('; ')}${count}${way}`
  })
  return { text: lines.length > 0 ? lines.join('\n') : 'no secret comes from a file', data: { secrets } }
}
