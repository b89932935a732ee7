import { Command } from 'commander'

/** The exit code for unknown or missing arguments. */
const exitUsage = 2

/**
 * Creates a command that is called as `npm run <name> --`. With `--help`, the command and each subcommand print their
 * usage and exit with 0. Unknown or missing arguments are named on one line, and the command exits with 2.
 */
export function createCommand(name: string, description: string): Command {
  const command = new Command(`npm run ${name} --`)
  return (
    command
      .description(description)
      .helpCommand(false)
      .exitOverride((err) => process.exit(err.exitCode === 0 ? 0 : exitUsage))
      .configureOutput({
        outputError: (text, write) => write(`${text.trim().replaceAll('\n', ' ')}; --help says what there is\n`)
      })
      // the hook refuses them and names the first
      .allowExcessArguments()
      .hook('preAction', (_, called) => {
        const [unknown] = called.args.slice(called.registeredArguments.length)
        if (unknown !== undefined) called.error(`error: unknown word '${unknown}'`)
      })
  )
}

/** Parses the options of a command without subcommands and without an action of its own. */
export function readOptions<Options extends object>(command: Command): Options {
  return command
    .action(() => {})
    .parse()
    .opts<Options>()
}
