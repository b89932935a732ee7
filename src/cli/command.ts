import { createInterface } from 'node:readline/promises'
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
        outputError: (text, write) => write(`${oneLine(text)}; --help says what there is\n`)
      })
      // the hook refuses them and names the first
      .allowExcessArguments()
      .hook('preAction', (_, called) => {
        if (called.registeredArguments.at(-1)?.variadic) return
        const [unknown] = called.args.slice(called.registeredArguments.length)
        if (unknown !== undefined) called.error(`error: unknown word '${unknown}'`)
      })
  )
}

const oneLine = (text: string) => text.trim().replaceAll('\n', ' ')

/** Parses the options of a command without subcommands and without an action of its own. */
export function readOptions<Options extends object>(command: Command): Options {
  return command
    .action(() => {})
    .parse()
    .opts<Options>()
}

/** How the operator's command that runs was called. It is set before its action begins. */
export const call = { json: false }

/** What a command ends for somebody, by the options that it was called with. Undefined: nothing. */
type Consequence = (options: Record<string, unknown>) => string | undefined
const consequences = new WeakMap<Command, Consequence>()

/** Says what a command ends for somebody. `npm run aggios` then asks first, or demands `--yes`. */
export function endsSomething(command: Command, consequence: string | Consequence): Command {
  consequences.set(command, typeof consequence === 'string' ? () => consequence : consequence)
  return command
}

/** Prints why a command was refused before it began: with `--json` as JSON on standard output, as any other failure. */
function refuse(text: string, write: (line: string) => void): void {
  // the options may be what could not be read, so the words themselves are looked at
  const words = process.argv.slice(2)
  const options = words.includes('--') ? words.slice(0, words.indexOf('--')) : words
  if (options.includes('--json')) {
    const error = oneLine(text).replace(/^error: /, '')
    process.stdout.write(`${JSON.stringify({ error }, null, 2)}\n`)
  } else write(`${oneLine(text)}; --help says what there is\n`)
}

/** Creates an operator's command, whose subcommands print JSON with `--json`. */
export function createOperatorCommand(name: string, description: string): Command {
  return createCommand(name, description)
    .configureOutput({ outputError: refuse })
    .option('--json', 'print the result as JSON on standard output', false)
    .hook('preAction', (_, called) => {
      call.json = called.optsWithGlobals().json === true
    })
}

/** A command that asks, or demands `--yes`, also when it is called by itself. */
export function standAlone(command: Command): Command {
  return command
    .option('--yes', 'do not ask before something is ended for somebody', false)
    .hook('preAction', (_, called) => confirm(called))
}

/** Makes one command of all operator's commands. Each keeps its own name and its own subcommands. */
export function createProgram(description: string, commands: Record<string, Command>): Command {
  const program = standAlone(createOperatorCommand('aggios', description))
  for (const [name, command] of Object.entries(commands)) program.addCommand(command.name(name))
  return program
}

async function confirm(called: Command): Promise<void> {
  const options = called.optsWithGlobals()
  const consequence = consequences.get(called)?.(options)
  if (consequence === undefined || options.yes === true) return
  if (!process.stdin.isTTY || !process.stderr.isTTY) called.error(`error: this ${consequence}: repeat it with --yes`)
  const terminal = createInterface({ input: process.stdin, output: process.stderr })
  const answer = await terminal.question(`This ${consequence}. Go on? [y/N] `)
  terminal.close()
  if (!/^y(es)?$/i.test(answer.trim())) called.error('error: nothing was changed')
}
