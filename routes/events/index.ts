import { Readable } from 'node:stream'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { EventsHeaders, EventsQuery, StreamedEvent } from './schemas.ts'

/** The events of an agency, as they happen. */
const events: FastifyPluginAsyncTypebox = async (app) => {
  app.get(
    '',
    {
      config: { access: 'viewer', permission: 'events:read', endless: true, problems: ['shutting_down'] },
      schema: {
        operationId: 'streamEvents',
        summary: 'What happens in the agency, as it happens',
        description:
          'Server-sent events, in one order for all readers. Each message has the id of its event, the type of the event as `event`, and a `StreamedEvent` as `data`. People see the events that concern every member, and those that they have caused or that were done to them; admins see all. The stream ends when the access token is no longer good, and may end at any time: come again with the last id. See docs/events.md.',
        tags: ['events'],
        querystring: EventsQuery,
        headers: EventsHeaders,
        response: {
          200: {
            description: 'Messages, until one of both sides ends',
            content: { 'text/event-stream': { schema: StreamedEvent } }
          }
        }
      }
    },
    async (request, reply) => {
      // EventSource and most readers send the header; the parameter is for those that can't
      const after = request.headers['last-event-id'] || request.query.last_event_id
      // proxies such as nginx would keep messages until there are many
      reply.type('text/event-stream').header('x-accel-buffering', 'no')
      if (request.method === 'HEAD') return Readable.from([]) as never
      const stream = await app.eventStreams.open(request, after)
      const { seconds } = request.query
      if (seconds !== undefined) stream.finishAfter(seconds * 1000)
      return stream as never
    }
  )
}

export default events
