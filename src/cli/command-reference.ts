import type { Command } from 'commander'

/** The scripts of package.json that are parts of the program. */
const scripts: Readonly<Record<string, string>> = {
  doctor: 'doctor',
  files: 'files',
  migrate: 'migrate',
  people: 'user',
  plans: 'plan',
  rotate: 'rotate',
  tenants: 'tenant'
}

/** All commands of the program in Markdown, as their `--help` describes them: a part of docs/commands.md. */
export function renderReference(program: Command): string {
  return program.commands.map(renderGroup).join('\n\n')
}

function renderGroup(group: Command): string {
  const script = scripts[group.name()]
  const parts = [`## ${group.name()}`, group.description()]
  const asks = group.name() === 'rotate'
  if (script) parts.push(`Also as \`npm run ${script} --\`${asks ? '' : ', which asks nothing'}.`)
  const commands = group.commands.length > 0 ? group.commands : [group]
  return [...parts, ...commands.map((command) => renderCommand(command, group))].join('\n\n')
}

function renderCommand(command: Command, group: Command): string {
  const path = command === group ? group.name() : `${group.name()} ${command.name()}`
  const words = command.registeredArguments.map((argument) => {
    const name = argument.variadic ? `${argument.name()}...` : argument.name()
    return argument.required ? `<${name}>` : `[${name}]`
  })
  const options = command.options.filter(({ long }) => long !== '--json')
  const lines = ['```bash', ['npm run aggios --', path, ...words].join(' '), '```']
  if (command !== group) lines.push('', command.description())
  for (const argument of command.registeredArguments) {
    if (argument.argChoices) lines.push('', `\`<${argument.name()}>\` is ${listOf(argument.argChoices)}.`)
  }
  if (options.length > 0)
    lines.push(
      '',
      ...options.map(({ flags, description, argChoices }) => {
        const choices = argChoices ? `: ${listOf(argChoices)}` : ''
        return `- \`${flags}\`: ${description}${choices}`
      })
    )
  return lines.join('\n')
}

const listOf = (names: readonly string[]) => names.map((name) => `\`${name}\``).join(', ')
