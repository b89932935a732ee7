import { Command } from 'commander'

/** What a command ends with that does not understand its words. */
const exitUsage = 2

/**
 * A command that is called as `npm run <name> --`. With `--help` it, and each of its subcommands, says what it is for and ends with
 * 0. Words and options that it does not know, or that are missing, are named on one line, and it ends with 2.
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
      // by the hook, which names them
      .allowExcessArguments()
      .hook('preAction', (_, called) => {
        const [unknown] = called.args.slice(called.registeredArguments.length)
        if (unknown !== undefined) called.error(`error: unknown word '${unknown}'`)
      })
  )
}

/** Reads the options of a command that has no subcommands and does its work afterwards. */
export function readOptions<Options extends object>(command: Command): Options {
  return command
    .action(() => {})
    .parse()
    .opts<Options>()
}
