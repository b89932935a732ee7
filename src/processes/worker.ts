import cluster from 'node:cluster'
import { describe } from '../error-text.ts'
import type { ToPrimary, ToWorker } from './messages.ts'
import { type Serving, serve } from './serving.ts'

/*
 * One of several processes on one port. It reads no configuration: the primary process gives it one.
 *
 * Ctrl-C in a terminal and some supervisors signal the primary and its workers alike, so every reason to end is one end, and
 * only the primary counts signals.
 */

const tell = (message: ToPrimary) => process.send?.(message)

let serving: Promise<Serving> | undefined
let leaving = false

async function leave(reason: object, options?: { notice: boolean }): Promise<void> {
  leaving = true
  const running = await serving?.catch(() => undefined)
  await running?.drain(reason, options)
  process.exit(0)
}

process.on('SIGTERM', (signal) => leave({ signal }))
process.on('SIGINT', (signal) => leave({ signal }))

cluster.worker?.on('disconnect', () => {
  // else the process ends here and now, with everything that is under way
  if (cluster.worker) cluster.worker.exitedAfterDisconnect = true
  // nobody else can have the port as long as this process listens
  leave({ reason: 'the primary process is gone' }, { notice: false })
})

process.on('message', async (message: ToWorker) => {
  switch (message.type) {
    case 'start':
      serving = serve(message.config, () => process.exit(1))
      try {
        tell({ type: 'ready', port: (await serving).port })
      } catch (err) {
        if (leaving) return
        process.stderr.write(`Aggios API could not start: ${describe(err)}\n`)
        process.exit(1)
      }
      return
    case 'drain':
      return leave(message.reason)
    case 'report': {
      const { id, what } = message
      const running = await serving?.catch(() => undefined)
      if (running) tell({ type: 'report', id, report: await running.report(what) })
    }
  }
})

tell({ type: 'hello' })
