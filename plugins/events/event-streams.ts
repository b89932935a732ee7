import type { FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { findEventPosition, newestEvent, readEvents } from '../../db/queries/events/events.ts'
import { EventStream } from '../../src/events/event-stream.ts'
import { readResumePoint } from '../../src/events/resume-points.ts'
import { type StreamedEvent, toStreamed } from '../../src/events/streamed-events.ts'
import { overloaded, rateLimited, shuttingDown } from '../../src/http/problems.ts'
import { isUuid } from '../../src/uuids.ts'

declare module 'fastify' {
  interface FastifyInstance {
    eventStreams: {
      /**
       * Opens a stream of the events of the caller's agency that the caller may see: those behind `after`, or from now on.
       * It ends when the caller's token is no longer good. Throws the problem of a limit.
       */
      open(request: FastifyRequest, after: string | undefined): Promise<EventStream>
      /** Ends all streams, and opens no more. */
      end(): void
    }
  }
}

/** The open streams of one person, and of one agency, in a process. */
export const maxStreams = { person: 10, agency: 1000 }
/** Events in one read. A stream that is behind keeps as many. */
const pageSize = 100
const retryMs = 500
const checkMs = 500
/** An hour less than events are kept (`sweep_events`). */
const keptMs = (30 * 24 - 1) * 3_600_000

/** The events of one agency in this process, which are read once for all of its live streams. */
type Channel = {
  tenantId: string
  streams: Set<EventStream>
  /** Open streams, and those that are being opened. */
  users: number
  /** Rejects when the newest event could not be read. */
  started: Promise<void>
  /** Live streams have all events up to this position. */
  reached: number
  newest: number
  isReading: boolean
}

/**
 * The streams of events. A stream is `behind` at first: it reads pages of the log by itself. When it has what its channel has
 * given out, it is live. When its reader takes no more bytes, it is behind again. So nothing is kept for slow readers.
 */
export default fp(
  async (app) => {
    const channels = new Map<string, Channel>()
    const streams = new Set<EventStream>()
    const ofPerson = new Map<string, number>()
    const counts = { opening: 0, sent: 0 }
    let isEnded = false
    let unfollow: (() => void) | undefined

    async function readNewest(tenant_id: string): Promise<number> {
      const [newest] = await app.gate.query({ tenant_id, user_id: null, request: '' }, newestEvent, {})
      return newest?.position ?? 0
    }

    async function readPage(tenant_id: string, reached: number): Promise<StreamedEvent[]> {
      const values = { tenant_id, reached, limit: pageSize }
      const rows = await app.gate.query({ tenant_id, user_id: null, request: '' }, readEvents, values)
      return rows.map(toStreamed)
    }

    function join(tenantId: string): Channel {
      const known = channels.get(tenantId)
      if (known) {
        known.users++
        return known
      }
      const channel: Channel = {
        ...{ tenantId, streams: new Set(), users: 1, started: Promise.resolve() },
        ...{ reached: 0, newest: 0, isReading: false }
      }
      channels.set(tenantId, channel)
      // first follow, then read: what is placed meanwhile is told
      unfollow ??= app.events.follow(onEvents, endStreams)
      channel.started = readNewest(tenantId).then((position) => {
        channel.reached = position
      })
      return channel
    }

    function leave(channel: Channel): void {
      if (--channel.users > 0) return
      channels.delete(channel.tenantId)
      if (channels.size > 0) return
      unfollow?.()
      unfollow = undefined
    }

    function onEvents(tenantId: string, newest: number): void {
      const channel = channels.get(tenantId)
      if (!channel) return
      channel.newest = Math.max(channel.newest, newest)
      giveOut(channel)
    }

    /** Reads what is new in the channel, and gives it to all live streams. */
    async function giveOut(channel: Channel): Promise<void> {
      if (channel.isReading) return
      channel.isReading = true
      try {
        await channel.started
        while (channel.newest > channel.reached && channel.users > 0) {
          const { newest, tenantId } = channel
          const page = await readPage(tenantId, channel.reached)
          const live = [...channel.streams].filter((stream) => stream.isLive && mayRead(stream))
          for (const stream of live) give(stream, page)
          channel.reached = reachedBy(page, Math.max(channel.reached, newest))
          for (const stream of live) if (stream.isLive) stream.reached = channel.reached
        }
      } catch (err) {
        app.log.warn({ err }, 'events could not be read, and are tried again')
        if (channel.users > 0) setTimeout(giveOut, retryMs, channel).unref()
      } finally {
        channel.isReading = false
      }
    }

    /** Reads what the stream lacks. Ends when it is live, and when its reader has no room. */
    async function catchUp(stream: EventStream, channel: Channel): Promise<void> {
      if (stream.isReading || stream.isLive) return
      stream.isReading = true
      try {
        while (stream.hasRoom && !stream.destroyed) {
          const { reached } = channel
          if (stream.reached >= reached) {
            stream.isLive = true
            return
          }
          const page = await readPage(channel.tenantId, stream.reached)
          if (stream.destroyed || !mayRead(stream)) return
          give(stream, page)
          if (stream.hasRoom) stream.reached = reachedBy(page, Math.max(stream.reached, reached))
        }
      } catch (err) {
        app.log.warn({ err }, 'events could not be read, and are tried again')
        if (!stream.destroyed) setTimeout(catchUp, retryMs, stream, channel).unref()
      } finally {
        stream.isReading = false
      }
    }

    /** Gives the events to the stream until its reader has no room. The rest is read again. */
    function give(stream: EventStream, page: StreamedEvent[]): void {
      const before = stream.sent
      for (const event of page) {
        if (!stream.hasRoom) break
        stream.give(event)
      }
      if (!stream.hasRoom) stream.isLive = false
      counts.sent += stream.sent - before
    }

    /** Ends the stream, and tells so, when its token is no longer good. Throws while that is not known. */
    function mayRead(stream: EventStream): boolean {
      const { claims } = stream
      const problem = app.revocations.find(claims)
      if (problem?.kind.status === 503) throw problem
      const isGood = !problem && claims.exp * 1000 > Date.now()
      if (!isGood) stream.finish()
      return isGood
    }

    /** Where a reader goes on. Undefined when they may have missed events that are no longer there. */
    async function findPlace(channel: Channel, after: string): Promise<number | undefined> {
      const { tenantId: tenant_id, reached } = channel
      const point = readResumePoint(after)
      if (point) {
        if (point.at < Date.now() - keptMs) return undefined
        // another process may have been ahead of this one. No event is there yet after a failover that has lost some
        const isThere = point.position <= reached || point.position <= (await readNewest(tenant_id))
        return isThere ? point.position : undefined
      }
      if (!isUuid(after)) return undefined
      const scope = { tenant_id, user_id: null, request: '' }
      const [event] = await app.gate.query(scope, findEventPosition, { tenant_id, id: after })
      // an event that has no position yet gets one behind what there is now
      return event && (event.position ?? reached)
    }

    function requirePlace({ user_id, tenant_id }: { user_id: string; tenant_id: string }): void {
      if (isEnded) throw shuttingDown({ headers: { 'retry-after': '1' } })
      if (streams.size + counts.opening >= app.config.eventStreams) {
        throw overloaded({ detail: 'too many streams of events are open', headers: { 'retry-after': '5' } })
      }
      const headers = { 'retry-after': '5' }
      if ((ofPerson.get(user_id) ?? 0) >= maxStreams.person) {
        throw rateLimited({ detail: `you have ${maxStreams.person} streams of events open`, headers })
      }
      if ((channels.get(tenant_id)?.users ?? 0) >= maxStreams.agency) {
        throw rateLimited({ detail: `the agency has ${maxStreams.agency} streams of events open`, headers })
      }
    }

    async function open(request: FastifyRequest, after: string | undefined): Promise<EventStream> {
      const { user } = request
      requirePlace(user)
      const channel = join(user.tenant_id)
      ofPerson.set(user.user_id, (ofPerson.get(user.user_id) ?? 0) + 1)
      const free = () => {
        const left = (ofPerson.get(user.user_id) ?? 1) - 1
        if (left > 0) ofPerson.set(user.user_id, left)
        else ofPerson.delete(user.user_id)
        leave(channel)
      }
      counts.opening++
      try {
        await channel.started
        const place = after ? await findPlace(channel, after) : channel.reached
        if (isEnded) throw shuttingDown({ headers: { 'retry-after': '1' } })
        const stream = new EventStream(user, place ?? channel.reached, (each) => catchUp(each, channel))
        streams.add(stream)
        channel.streams.add(stream)
        const openedAt = performance.now()
        stream.once('close', () => {
          streams.delete(stream)
          channel.streams.delete(stream)
          free()
          const seconds = Math.round((performance.now() - openedAt) / 1000)
          request.log.debug({ seconds, events: stream.sent }, 'a stream of events has ended')
        })
        stream.begin({ isNew: !after, isReset: place === undefined })
        // a stream has limits of its own
        request.releaseSlots?.()
        return stream
      } catch (err) {
        free()
        throw err
      } finally {
        counts.opening--
      }
    }

    function endStreams(): void {
      for (const stream of streams) stream.finish()
    }

    function endAll(): void {
      isEnded = true
      endStreams()
    }

    /** Ends the streams whose tokens are no longer good. Those of which this is not known wait: they are given nothing. */
    function endRefused(): void {
      for (const stream of streams) {
        const problem = app.revocations.find(stream.claims)
        if (problem && problem.kind.status !== 503) stream.finish()
      }
    }

    function check(): void {
      const now = performance.now()
      const time = Date.now()
      for (const stream of streams) {
        if (stream.claims.exp * 1000 <= time) stream.finish()
        else if (stream.beat(now)) stream.destroy()
      }
    }

    app.decorate('eventStreams', { open, end: endAll })
    app.revocations.onRevoked(endRefused)
    app.metrics.gauge('aggios_event_streams', 'Open streams of events', () => streams.size)
    app.metrics.gauge('aggios_event_streams_max', 'Streams of events that may be open', () => app.config.eventStreams)
    app.metrics.counter('aggios_events_streamed_total', 'Events that were sent to readers', () => counts.sent)
    const timer = setInterval(check, checkMs).unref()
    app.addHook('preClose', async () => endAll())
    app.addHook('onClose', async () => clearInterval(timer))
  },
  { name: 'event-streams', dependencies: ['config', 'database', 'events', 'metrics', 'revocations'] }
)

/** Up to where a page leads: its last event, or the newest that was known before a page that is not full was read. */
function reachedBy(page: StreamedEvent[], newest: number): number {
  const last = page.at(-1)?.position ?? 0
  return page.length < pageSize ? Math.max(last, newest) : last
}
