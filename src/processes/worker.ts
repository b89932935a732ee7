import cluster from 'node:cluster'
import { describe } from '../error-text.ts'
import type { ToPrimary, ToWorker } from './messages.ts'
import { type Serving, serve } from './serving.ts'

/*
 * The program of a worker: one of several processes on one port. The primary process sends it the configuration.
 *
 * Ctrl-C in a terminal and some service managers signal the primary and the workers alike. So every signal and message
 * leads to the same shutdown here, and only the primary counts signals.
 */

const send = (message: ToPrimary) => process.send?.(message)

let serving: Promise<Serving> | undefined
let leaving = false

async function shutDown(reason: object, options?: { notice: boolean }): Promise<void> {
  leaving = true
  const running = await serving?.catch(() => undefined)
  await running?.drain(reason, options)
  process.exit(0)
}

process.on('SIGTERM', (signal) => shutDown({ signal }))
process.on('SIGINT', (signal) => shutDown({ signal }))

// a signal to the whole group: only the primary acts on it
process.on('SIGUSR2', () => {})
// the primary reads the files of secrets again, and tells the workers
process.on('SIGHUP', () => {})

cluster.worker?.on('disconnect', () => {
  // otherwise node:cluster ends the process at once, with all running requests
  if (cluster.worker) cluster.worker.exitedAfterDisconnect = true
  // without notice: no new primary can use the port while this process listens
  shutDown({ reason: 'the primary process is gone' }, { notice: false })
})

process.on('message', async (message: ToWorker) => {
  switch (message.type) {
    case 'start':
      serving = serve(message.config, () => process.exit(1))
      try {
        const { port, onAdopted } = await serving
        onAdopted((values) => send({ type: 'adopted', values }))
        send({ type: 'ready', port })
      } catch (err) {
        if (leaving) return
        process.stderr.write(`Aggios API could not start: ${describe(err)}\n`)
        process.exit(1)
      }
      return
    case 'secrets':
      await (await serving?.catch(() => undefined))?.renew(message.values)
      return
    case 'drain':
      return shutDown(message.reason)
    case 'log-level':
      return void (await serving?.catch(() => undefined))?.setLogLevel(message.level)
    case 'report': {
      const { id, what } = message
      const running = await serving?.catch(() => undefined)
      if (running) send({ type: 'report', id, report: await running.report(what) })
    }
  }
})

send({ type: 'hello' })
