import fp from 'fastify-plugin'
import { createDecoders, type Decoders } from '../../src/files/decoders.ts'

declare module 'fastify' {
  interface FastifyInstance {
    /** Parses untrusted bytes in subprocesses. Waiting jobs of several fairness keys are run in turn. */
    decoders: Pick<Decoders, 'decode' | 'findType'>
  }
}

/** The subprocesses that decode images and find the types of files. Each is started by its first job. */
export default fp(
  async (app) => {
    const { decode, findType, stats, close } = createDecoders({ log: app.log })
    app.decorate('decoders', { decode, findType })
    // onClose runs when no request is in progress any more
    app.addHook('onClose', async () => close())
    const statOf = (what: 'running' | 'waiting' | 'killed') => () => {
      const { images, types } = stats()
      return [
        { labels: { kind: 'image' }, value: images[what] },
        { labels: { kind: 'type' }, value: types[what] }
      ]
    }
    app.metrics.gauge('aggios_decoders_running', 'Jobs of decoders under way', statOf('running'))
    app.metrics.gauge('aggios_decoders_waiting', 'Jobs of decoders that wait', statOf('waiting'))
    app.metrics.counter('aggios_decoders_ended_total', 'Decoders that died or passed a limit', statOf('killed'))
  },
  { name: 'decoders', dependencies: ['metrics'] }
)
