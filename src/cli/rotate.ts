import { Argument, type Command, InvalidArgumentError } from 'commander'
import type { TenantGate } from '../../db/gate/gate.ts'
import { createOperatorCommand, endsSomething, standAlone } from './command.ts'
import { operate, progress, requireUrl } from './operator.ts'
import { finishDatabase, rotateDatabase } from './rotate/database.ts'
import { openFleet } from './rotate/fleet.ts'
import { withRotationLock } from './rotate/lock.ts'
import { reencrypt, rotateClientSecret, type SharedProvider, sharedProviders } from './rotate/provider.ts'
import { finishRedis, rotateRedis } from './rotate/redis.ts'
import { finishPepper, finishTokens, rotatePepper, rotateTokens } from './rotate/rings.ts'
import type { Rotation } from './rotate/rotation.ts'
import { rotateStoreKey } from './rotate/s3.ts'
import { describeSecrets } from './rotate/status.ts'

type Options = { listener: string[]; timeout: number }
type Finishing = Options & { finish: boolean; now?: boolean }

export const command = createOperatorCommand(
  'rotate',
  'Replaces secrets while the servers run: no request fails, and nobody is signed out. It changes the files that NAME_FILE names, waits until every process uses what is in them, and can be interrupted and run again. docs/secrets.md has each secret.'
)

const part = (name: string, description: string): Command =>
  command
    .command(name)
    .description(description)
    .option(
      '--listener <url>',
      'the internal listener of a server, once for each; without it the one of METRICS_HOST and METRICS_PORT',
      (url: string, before: string[]) => [...before, url],
      [] as string[]
    )
    .option('--timeout <seconds>', 'how long to wait for the processes', readSeconds, 60)

/** A part whose second half takes the old secret away. */
const halves = (name: string, description: string, loss: string) =>
  endsSomething(part(name, description), ({ finish }) => (finish ? loss : undefined)).option(
    '--finish',
    'take the old one away',
    false
  )

halves(
  'jwt',
  'Makes a new key of tokens, the first of JWT_SECRET. The old one is dropped with --finish, when no session needs it any more.',
  'drops the old key of tokens'
)
  .option('--now', 'with --finish: at once, which signs out who has not come since', false)
  .action((options: Finishing) =>
    run(options, (rotation) =>
      options.finish ? finishTokens(rotation, { now: options.now === true }) : rotateTokens(rotation)
    )
  )

halves(
  'pepper',
  'Makes a new pepper, the first of PASSWORD_PEPPER. The old one is dropped with --finish, which is refused while anything stored needs it.',
  'drops the old pepper'
).action((options: Finishing) =>
  run(options, (rotation, gate) => (options.finish ? finishPepper(rotation, gate) : rotatePepper(rotation, gate)))
)

halves(
  'database',
  'Makes the servers log in as the other one of aggios_app and aggios_app_b, with a new password. Needs DATABASE_ADMIN_URL. The role before is locked with --finish.',
  'locks the role that the servers used before'
).action((options: Finishing) => run(options, options.finish ? finishDatabase : rotateDatabase))

halves(
  'redis',
  'Gives the user of Redis a second password, which the servers then use. Needs REDIS_ADMIN_URL. The one before is removed with --finish.',
  'removes the old password of Redis'
).action((options: Finishing) => run(options, options.finish ? finishRedis : rotateRedis))

part(
  's3',
  'Makes the servers use another key of the store, which you have made there. A key that can not do all that is needed changes nothing.'
)
  .option('--access-key-file <path>', 'a file with the name of the new key')
  .option('--secret-key-file <path>', 'a file with its secret')
  .action((options: Options & { accessKeyFile?: string; secretKeyFile?: string }) =>
    run(options, (rotation) =>
      rotateStoreKey(rotation, { accessKeyFile: options.accessKeyFile, secretKeyFile: options.secretKeyFile })
    )
  )

part(
  'provider',
  "Makes the servers use another client secret of a provider, which you have made there. Without a provider it encrypts the secrets of agencies' own providers and webhooks anew, with the first pepper."
)
  .addArgument(new Argument('[provider]', 'the provider').choices(sharedProviders))
  .option('--secret-file <path>', 'a file with the new secret')
  .action((provider: SharedProvider | undefined, options: Options & { secretFile?: string }, called: Command) => {
    if (provider === undefined) return run(options, reencrypt)
    const { secretFile } = options
    if (secretFile === undefined) return called.error("error: option '--secret-file <path>' is missing")
    return run(options, (rotation) => rotateClientSecret(rotation, provider, secretFile))
  })

part('status', 'Shows for each secret in a file whether every process uses what is in it. Shows no secret.').action(
  (options: Options) =>
    operate((_, config) =>
      describeSecrets({ config, env: process.env, fleet: openFleet(config, options), step: progress })
    )
)

if (import.meta.main) await standAlone(command).parseAsync()

function run(options: Options, work: (rotation: Rotation, gate: TenantGate) => Promise<string>): Promise<never> {
  return operate((gate, config) => {
    const step = (line: string) => void process.stderr.write(`${line}\n`)
    const rotation = { config, env: process.env, fleet: openFleet(config, options), step }
    return withRotationLock(requireUrl(config), () => work(rotation, gate))
  })
}

function readSeconds(text: string): number {
  if (!/^\d{1,5}$/.test(text)) throw new InvalidArgumentError('It must be a number of seconds.')
  return Number(text)
}
