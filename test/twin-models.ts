import fc from 'fast-check'

/*
 * Two agencies, and a model of the state of each. Random commands run in both at the same time. Each agency must stay as its own
 * model says: a difference means that one agency changed the other.
 */

/** An agency is not as its model says. */
export class Divergence extends Error {}

export function agree(what: string, actual: unknown, expected: unknown): void {
  const [found, wanted] = [JSON.stringify(actual), JSON.stringify(expected)]
  if (found !== wanted) throw new Divergence(`${what}: ${found}, not ${wanted}`)
}

export type Twins<Model, Command> = {
  command: fc.Arbitrary<Command>
  /** How many commands each agency gets. */
  length: { minLength: number; maxLength: number }
  /** What both run at the end of each program. */
  compare: Command
  /** Makes two new agencies for a program. */
  start(): Promise<[Model, Model]>
  /** Runs a command in the first agency, and changes its model. */
  run(mine: Model, theirs: Model, command: Command): Promise<void>
}

/** Runs programs until one fails, or the time is over. */
export async function checkTwins<Model, Command>(
  { command, length, compare, start, run }: Twins<Model, Command>,
  parameters: fc.Parameters<[unknown]>
) {
  let steps = 0
  const program = fc.array(fc.tuple(fc.option(command), fc.option(command)), length)
  const property = fc.asyncProperty(program, async (rounds) => {
    const [one, other] = await start()
    for (const [first, second] of [...rounds, [compare, compare] as const]) {
      const both = await Promise.allSettled([
        ...(first ? [run(one, other, first)] : []),
        ...(second ? [run(other, one, second)] : [])
      ])
      steps += both.length
      for (const each of both) if (each.status === 'rejected') throw each.reason
    }
  })
  const details = await fc.check(property, parameters as never)
  return { details, steps, failure: details.failed ? fc.defaultReportMessage(details as never) : undefined }
}
