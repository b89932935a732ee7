import { Option } from 'commander'
import { createProgram } from './command.ts'
import { renderReference } from './command-reference.ts'
import { command as doctor } from './doctor.ts'
import { command as files } from './files.ts'
import { command as jobs } from './jobs.ts'
import { command as logLevel } from './log-level.ts'
import { command as migrate } from './migrate.ts'
import { command as outbox } from './outbox.ts'
import { command as plans } from './plan.ts'
import { command as keys } from './rotate/keys.ts'
import { command as rotate } from './rotate.ts'
import { command as sessions } from './sessions.ts'
import { command as tenants } from './tenant.ts'
import { command as people } from './user.ts'

/** All operator's commands in one. `npm run tenant`, `plan`, `user`, `files`, `migrate` and `doctor` are parts of it. */
export const program = createProgram(
  'What an operator does, with the settings of the server. Servers may run meanwhile.',
  {
    doctor,
    files,
    jobs,
    keys,
    'log-level': logLevel,
    migrate,
    outbox,
    people,
    plans,
    rotate,
    sessions,
    tenants
  }
)

if (import.meta.main) {
  program
    .addOption(new Option('--reference', 'print all commands in Markdown').hideHelp())
    .action(({ reference }: { reference?: true }) => {
      if (reference) process.stdout.write(`${renderReference(program)}\n`)
      else program.help()
    })
  await program.parseAsync()
}
