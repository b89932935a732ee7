import { type IncomingMessage, type RequestOptions, request as requestHttp } from 'node:http'
import { request as requestHttps } from 'node:https'
import { BlockList, isIP, type LookupFunction } from 'node:net'
import { createHostLookup, createSystemLookup, type HostLookup } from './host-lookups.ts'

/** `refused`: the address is one that must not be requested. `unknown_host`: DNS knows no address of the host. */
export type OutboundReason = 'refused' | 'unknown_host' | 'timeout' | 'failed'

/** An outbound request that failed. The message has nothing that the other side has sent. */
export class OutboundFailure extends Error {
  readonly reason: OutboundReason
  constructor(message: string, { reason = 'failed', cause }: { reason?: OutboundReason; cause?: unknown } = {}) {
    super(message, { cause })
    this.reason = reason
  }

  /** Whether the other side took too long. */
  get timeout(): boolean {
    return this.reason === 'timeout'
  }
}

export type OutboundClient<Reply> = (url: string | URL, init?: OutboundRequest) => Promise<Reply>
export type OutboundFetch = OutboundClient<Response>
type OutboundRequest = {
  method?: string | undefined
  headers?: ConstructorParameters<typeof Headers>[0] | undefined
  body?: unknown
  signal?: AbortSignal | null | undefined
}

export const outboundTimeoutMs = 5000
export const maxOutboundBytes = 1024 * 1024

/** Networks that are not the public internet: RFC 6890 and its registries. */
const notPublic = new BlockList()
for (const [network, bits] of [
  ['0.0.0.0', 8],
  ['10.0.0.0', 8],
  ['100.64.0.0', 10],
  ['127.0.0.0', 8],
  ['169.254.0.0', 16],
  ['172.16.0.0', 12],
  ['192.0.0.0', 24],
  ['192.0.2.0', 24],
  ['192.88.99.0', 24],
  ['192.168.0.0', 16],
  ['198.18.0.0', 15],
  ['198.51.100.0', 24],
  ['203.0.113.0', 24],
  ['224.0.0.0', 4],
  ['240.0.0.0', 4]
] as const) {
  notPublic.addSubnet(network, bits, 'ipv4')
}
// only 2000::/3 is handed out; within it, addresses that carry an IPv4 address, and examples
const handedOut = new BlockList()
handedOut.addSubnet('2000::', 3, 'ipv6')
for (const [network, bits] of [
  ['2001::', 23],
  ['2001:db8::', 32],
  ['2002::', 16],
  ['3fff::', 20]
] as const) {
  notPublic.addSubnet(network, bits, 'ipv6')
}

/** Tells whether an IP address is one of the public internet. */
export function isPublicAddress(address: string): boolean {
  const family = isIP(address)
  if (family === 4) return !notPublic.check(address, 'ipv4')
  return family === 6 && handedOut.check(address, 'ipv6') && !notPublic.check(address, 'ipv6')
}

const isLoopbackName = (hostname: string) =>
  /^(?:(?:[a-z0-9-]+\.)*localhost|127(?:\.\d{1,3}){3}|\[::1\])$/.test(hostname)

/**
 * Tells why an address is never requested, or returns undefined: only https is, or in `development` http to this machine, and
 * no address with a password. One whose host is an IP address must be of the public internet, unless `privateNetworks` are
 * allowed.
 */
export function outboundFault(
  url: URL,
  { development, privateNetworks = development }: { development: boolean; privateNetworks?: boolean }
): string | undefined {
  const isPlain = url.protocol === 'http:' && development && isLoopbackName(url.hostname)
  if (url.protocol !== 'https:' && !isPlain) return 'only https is requested'
  if (url.username !== '' || url.password !== '') return 'the address has a password'
  // an address that is written as such is not looked up
  const literal = url.hostname.replace(/^\[(.*)\]$/, '$1')
  if (isIP(literal) && !privateNetworks && !isPublicAddress(literal)) return 'the address is not public'
}

type OutboundOptions = { development: boolean; privateNetworks?: boolean; findAddresses?: HostLookup }

/**
 * Makes a `fetch` that follows no redirect, takes at most 1 MiB, and waits 5 seconds for the whole answer. Where it connects to
 * is decided as `createOutboundClient` says. Rejects with OutboundFailure.
 */
export function createOutboundFetch(options: OutboundOptions): OutboundFetch {
  return createOutboundClient({ ...options, timeoutMs: outboundTimeoutMs, readReply })
}

/**
 * Makes a client for addresses that a customer has configured, or that an answer of somebody else names. A request goes
 * to https only, and to the public internet only, so that nobody can reach what stands beside this server (SSRF). The
 * host is resolved once, by `findAddresses`, and the address that was checked is the one that is connected to. Variables that
 * name a proxy are ignored.
 *
 * It follows no redirect, and ends after `timeoutMs` with the whole answer, which `readReply` reads. Rejects with
 * OutboundFailure.
 *
 * `privateNetworks` allows private addresses too, for servers that the operator has chosen in the settings. `development`
 * allows them as well, and http to this machine.
 */
export function createOutboundClient<Reply>({
  development,
  privateNetworks = development,
  findAddresses = privateNetworks ? createSystemLookup() : createHostLookup({ servers: [] }),
  timeoutMs,
  readReply
}: OutboundOptions & {
  timeoutMs: number
  readReply: (reply: IncomingMessage) => Promise<Reply>
}): OutboundClient<Reply> {
  async function findAllowed(hostname: string) {
    const addresses = await findAddresses(hostname).catch((cause: unknown) => {
      const { code } = cause as { code?: string }
      const timeout = code === 'ETIMEOUT' || code === 'ECANCELLED'
      throw new OutboundFailure(timeout ? 'the name servers did not answer' : 'the host was not found', {
        reason: timeout ? 'timeout' : 'unknown_host',
        cause
      })
    })
    const allowed = privateNetworks ? addresses : addresses.filter(({ address }) => isPublicAddress(address))
    if (allowed.length === 0) throw new OutboundFailure('the host has no public address', { reason: 'refused' })
    return allowed
  }

  const lookup: LookupFunction = (hostname, options, done) => {
    findAllowed(hostname).then(
      (allowed) => {
        const [first] = allowed
        if (options.all) done(null, allowed)
        else done(null, first?.address ?? '', first?.family)
      },
      (err: NodeJS.ErrnoException) => done(err, [])
    )
  }

  return async (target, { method = 'GET', headers, body, signal } = {}) => {
    const url = new URL(target)
    const fault = outboundFault(url, { development, privateNetworks })
    if (fault !== undefined) throw new OutboundFailure(fault, { reason: 'refused' })
    const sent = body === undefined || body === null ? undefined : String(body)
    const timeout = AbortSignal.timeout(timeoutMs)
    const options: RequestOptions = {
      method,
      agent: false,
      lookup,
      signal: signal ? AbortSignal.any([signal, timeout]) : timeout,
      headers: {
        'user-agent': 'aggios-api',
        ...Object.fromEntries(new Headers(headers)),
        'accept-encoding': 'identity',
        ...(sent !== undefined && { 'content-length': Buffer.byteLength(sent) })
      }
    }
    try {
      return await exchange(url, options, sent, readReply)
    } catch (err) {
      if (err instanceof OutboundFailure) throw err
      const late = timeout.aborted || signal?.aborted === true
      throw new OutboundFailure(late ? 'the answer took too long' : 'the request failed', {
        reason: late ? 'timeout' : 'failed',
        cause: err
      })
    }
  }
}

function exchange<Reply>(
  url: URL,
  options: RequestOptions,
  body: string | undefined,
  readReply: (reply: IncomingMessage) => Promise<Reply>
): Promise<Reply> {
  return new Promise((fulfil, reject) => {
    const send = url.protocol === 'https:' ? requestHttps : requestHttp
    let hasReply = false
    const request = send(url, options, (reply) => {
      hasReply = true
      readReply(reply).then(fulfil, (err: unknown) => {
        request.destroy()
        reject(err)
      })
    })
    request.on('error', reject)
    // after 101 Node has neither a reply nor an error, and the time limit has nothing left to end
    request.on('close', () => {
      if (!hasReply) reject(new Error('the connection ended without an answer'))
    })
    request.end(body)
  })
}

async function readReply(reply: IncomingMessage): Promise<Response> {
  const status = reply.statusCode ?? 0
  if (status >= 300 && status < 400) throw new OutboundFailure('the answer is a redirect')
  if (status < 200 || reply.headers['content-encoding'] !== undefined) {
    throw new OutboundFailure('the answer has another form than was asked for')
  }
  const chunks: Buffer[] = []
  let size = 0
  for await (const chunk of reply as AsyncIterable<Buffer>) {
    size += chunk.length
    if (size > maxOutboundBytes) throw new OutboundFailure('the answer is too large')
    chunks.push(chunk)
  }
  const headers = new Headers()
  for (const [name, value] of Object.entries(reply.headers)) {
    for (const each of [value ?? []].flat()) headers.append(name, each)
  }
  return new Response(status === 204 ? null : Buffer.concat(chunks), { status, headers })
}
