/** Lists every problem of a configuration at once. Each problem begins with the name of its variable. */
export class InvalidConfiguration extends Error {
  readonly problems: string[]
  constructor(problems: string[]) {
    const lines = problems.map((problem) => `  ${problem}`)
    super(`invalid configuration:${lines.length === 1 ? ` ${problems[0]}` : `\n${lines.join('\n')}`}`)
    this.problems = problems
  }
}
