import { systemScope } from '../../db/gate/gate-query.ts'
import { listMails, operateMail, readBacklog, type UnsentMail } from '../../db/queries/operations/operators.ts'
import { isUuid } from '../uuids.ts'
import { createOperatorCommand, endsSomething } from './command.ts'
import { operate, printable, Refusal } from './operator.ts'

const maxListed = 100

export const command = createOperatorCommand(
  'outbox',
  'Shows the mails that were not sent, and retries or drops them. A list names no address: ids are in the log of the server too.'
)

command
  .command('backlog')
  .description(`Lists the mails that wait, those that are due for longest first, ${maxListed} at most.`)
  .action(() => list(false))

command
  .command('dropped')
  .description(`Lists the mails of the last 30 days that were given up, ${maxListed} at most.`)
  .action(() => list(true))

command
  .command('retry <ids...>')
  .description('Tries mails again from the beginning, also those that were given up. The token in a mail is made anew.')
  .action((ids: string[]) => act(ids, 'retry'))

endsSomething(command.command('drop <ids...>'), 'gives up mails that nobody will get')
  .description('Gives mails up. The agency of an invitation sees that in its audit log.')
  .action((ids: string[]) => act(ids, 'drop'))

const outcomes = { retry: 'will be tried again', drop: 'is given up' }

function list(given_up: boolean): Promise<never> {
  return operate(async (gate) => {
    const mails = await gate.query(systemScope, listMails, { given_up, batch: maxListed })
    const [backlog] = await gate.query(systemScope, readBacklog, {})
    const { mails_due = 0, mails_due_since = null } = backlog ?? {}
    const since = mails_due_since ? `, the oldest since ${mails_due_since.toISOString()}` : ''
    const count = given_up ? `given up: ${mails.length}` : `due: ${mails_due}${since}`
    return {
      text: [...mails.map(describe), count].join('\n'),
      data: { mails, mails_due, mails_due_since }
    }
  })
}

const describe = ({ id, kind, attempts, due_at, dropped_at, last_error }: UnsentMail) =>
  [
    `${id}: ${kind}`,
    dropped_at ? `given up ${dropped_at.toISOString()}` : `due ${due_at.toISOString()}`,
    `attempts ${attempts}`,
    printable(last_error)
  ]
    .filter(Boolean)
    .join(', ')

function act(ids: string[], what: keyof typeof outcomes): Promise<never> {
  return operate(async (gate) => {
    const changed: string[] = []
    const unknown: string[] = []
    for (const id of ids) {
      const [mail] = isUuid(id.toLowerCase()) ? await gate.query(systemScope, operateMail, { id, act: what }) : []
      ;(mail ? changed : unknown).push(id)
    }
    if (unknown.length > 0) {
      throw new Refusal(
        `${unknown.join(', ')}: no mail that waits${changed.length > 0 ? `; of ${changed.join(', ')} each ${outcomes[what]}` : ''}`
      )
    }
    return { text: changed.map((id) => `${id} ${outcomes[what]}`).join('\n'), data: { changed } }
  })
}

// last, because the actions use what is defined above
if (import.meta.main) await command.parseAsync()
