import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import type { Owner } from './harness.ts'

/*
 * A name server for the tests: it answers questions for TXT records and addresses over UDP (RFC 1035).
 */

/** What it says about a name: records, each of one or several strings, or a failure. Silence is no answer at all. */
export type Answer = (string | string[])[] | 'no_name' | 'server_failure' | 'silence' | 'refused'

/** The addresses of a name, or the name that it stands for. */
export type Host = { a?: string[] | 'silence'; aaaa?: string[] | 'silence'; cname?: string }

export type NameServer = {
  /** For the setting DNS_SERVERS. */
  address: string
  /** Names that are not here do not exist. */
  answers: Map<string, Answer>
  /** Names with addresses. */
  hosts: Map<string, Host>
  /** The names that were asked for, in order. */
  asked: string[]
}

const codes = { no_name: 3, server_failure: 2, refused: 5 }
const types = { a: 1, cname: 5, txt: 16, aaaa: 28 }

/** Starts a name server on a free port of this machine. */
export async function startNameServer(t: Owner): Promise<NameServer> {
  const answers = new Map<string, Answer>()
  const hosts = new Map<string, Host>()
  const asked: string[] = []
  const socket = createSocket('udp4')
  socket.on('message', (query, from) => {
    const { name, end } = readName(query)
    asked.push(name)
    const type = query.readUInt16BE(end)
    const family = type === types.a ? 'a' : 'aaaa'
    const answer = answers.get(name) ?? (hosts.has(name) ? [] : 'no_name')
    if (answer === 'silence' || (type !== types.txt && hosts.get(name)?.[family] === 'silence')) return
    if (type === types.txt || typeof answer === 'string') {
      const records = typeof answer === 'string' ? answer : answer.map((strings) => record(types.txt, text(strings)))
      return socket.send(reply(query, end, records), from.port, from.address)
    }
    socket.send(reply(query, end, addressesOf(hosts, name, family)), from.port, from.address)
  })
  socket.bind(0, '127.0.0.1')
  await once(socket, 'listening')
  t.teardown(() => new Promise<void>((resolve) => socket.close(() => resolve())))
  return { address: `127.0.0.1:${socket.address().port}`, answers, hosts, asked }
}

/** The name of the question, in lower case, and where it ends. The header has 12 bytes. */
function readName(query: Buffer): { name: string; end: number } {
  const labels: string[] = []
  let at = 12
  for (let size = query[at] ?? 0; size > 0; size = query[at] ?? 0) {
    labels.push(query.toString('latin1', at + 1, at + 1 + size))
    at += 1 + size
  }
  return { name: labels.join('.').toLowerCase(), end: at + 1 }
}

/** The records from a name to its addresses, along the names that it stands for. */
function addressesOf(hosts: Map<string, Host>, name: string, family: 'a' | 'aaaa'): Buffer[] {
  const host = hosts.get(name)
  if (host?.cname !== undefined) {
    const alias = record(types.cname, encodeName(host.cname), encodeName(name))
    return [alias, ...addressesOf(hosts, host.cname, family)]
  }
  const addresses = host?.[family]
  if (addresses === undefined || addresses === 'silence') return []
  return addresses.map((address) => record(types[family], encodeAddress(address), encodeName(name)))
}

const encodeName = (name: string) =>
  Buffer.concat([
    ...name.split('.').map((label) => Buffer.from([label.length, ...Buffer.from(label)])),
    Buffer.alloc(1)
  ])

function encodeAddress(address: string): Buffer {
  if (!address.includes(':')) return Buffer.from(address.split('.').map(Number))
  const [head = '', tail = ''] = address.split('::')
  const groups = (part: string) => (part === '' ? [] : part.split(':'))
  const zeros = Array<string>(8 - groups(head).length - groups(tail).length).fill('0')
  const all = [...groups(head), ...zeros, ...groups(tail)]
  return Buffer.concat(all.map((group) => Buffer.from(group.padStart(4, '0'), 'hex')))
}

function reply(query: Buffer, end: number, answer: Buffer[] | Exclude<Answer, 'silence' | unknown[]>): Buffer {
  const records = typeof answer === 'string' ? [] : answer
  const header = Buffer.alloc(12)
  query.copy(header, 0, 0, 2)
  // a response, with recursion as it was desired, and available
  header.writeUInt16BE(0x8180 | (typeof answer === 'string' ? codes[answer] : 0), 2)
  header.writeUInt16BE(1, 4)
  header.writeUInt16BE(records.length, 6)
  const question = query.subarray(12, end + 4)
  return Buffer.concat([header, question, ...records])
}

const text = (strings: string | string[]) =>
  Buffer.concat([strings].flat().map((each) => Buffer.from([each.length, ...Buffer.from(each, 'latin1')])))

/** A record. Without a name it is about that of the question. */
function record(type: number, data: Buffer, name: Buffer = Buffer.from([0xc0, 0x0c])): Buffer {
  const head = Buffer.alloc(10)
  // type, class IN, a life of 0 s and the size
  head.writeUInt16BE(type, 0)
  head.writeUInt16BE(1, 2)
  head.writeUInt16BE(data.length, 8)
  return Buffer.concat([name, head, data])
}
