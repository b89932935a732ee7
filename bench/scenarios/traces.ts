import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import type { Scenario } from '../bench.ts'
import { productReads } from '../contenders.ts'
import { comparePair } from '../pairs.ts'
import { startProduct } from '../servers.ts'

/** Compares a server that traces the default share of its requests, and sends the spans, with one that traces none. */
export const traces: Scenario = {
  name: 'traces',
  about:
    'GET /users/me with traces by OpenTelemetry, of one request in ten, against the same without: CPU of the server',
  inQuick: false,
  async run(bench) {
    // a collector that takes everything; its CPU time is in no figure
    const collector = createServer((request, reply) => request.resume().on('end', () => reply.end('{}')))
    await new Promise<void>((listening) => collector.listen(0, '127.0.0.1', listening))
    const { port } = collector.address() as AddressInfo
    const dataset = await bench.thousand()
    const traced = await startProduct(bench.database, dataset, {
      OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${port}`
    })
    const plain = await startProduct(bench.database, dataset)
    const reads = [productReads(traced, dataset, 'with traces'), productReads(plain, dataset, 'without')] as const
    const pair = await comparePair(bench.conditions(), ...reads)
    bench.pair('traces', pair)
    await Promise.all([traced.stop(), plain.stop()])
    collector.close()
  }
}
