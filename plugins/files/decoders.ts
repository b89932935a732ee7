import fp from 'fastify-plugin'
import { createDecoders, type Decoders } from '../../src/files/decoders.ts'

declare module 'fastify' {
  interface FastifyInstance {
    /** Read bytes of strangers in processes of their own. The party is who takes turns where much waits. */
    decoders: Pick<Decoders, 'decode' | 'findType'>
  }
}

/** The processes that decode images and look at the beginnings of files. Each is started when there is something to read. */
export default fp(
  async (app) => {
    const { decode, findType, stats, close } = createDecoders({ log: app.log })
    app.decorate('decoders', { decode, findType })
    // requests are over by then
    app.addHook('onClose', async () => close())
    const of = (what: 'running' | 'waiting' | 'killed') => () => {
      const { images, types } = stats()
      return [
        { labels: { kind: 'image' }, value: images[what] },
        { labels: { kind: 'type' }, value: types[what] }
      ]
    }
    app.metrics.gauge('aggios_decoders_running', 'Jobs of decoders under way', of('running'))
    app.metrics.gauge('aggios_decoders_waiting', 'Jobs of decoders that wait', of('waiting'))
    app.metrics.counter('aggios_decoders_ended_total', 'Decoders that died or passed a limit', of('killed'))
  },
  { name: 'decoders', dependencies: ['metrics'] }
)
