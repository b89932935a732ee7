import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import type { Owner } from './harness.ts'

/*
 * A name server for the tests: it answers questions for TXT records over UDP (RFC 1035).
 */

/** What it says about a name: records, each of one or several strings, or a failure. Silence is no answer at all. */
export type Answer = (string | string[])[] | 'no_name' | 'server_failure' | 'silence' | 'refused'

export type NameServer = {
  /** For the setting DNS_SERVERS. */
  address: string
  /** Names that are not here do not exist. */
  answers: Map<string, Answer>
  /** The names that were asked for, in order. */
  asked: string[]
}

const codes = { no_name: 3, server_failure: 2, refused: 5 }
const txt = 16

/** Starts a name server on a free port of this machine. */
export async function startNameServer(t: Owner): Promise<NameServer> {
  const answers = new Map<string, Answer>()
  const asked: string[] = []
  const socket = createSocket('udp4')
  socket.on('message', (query, from) => {
    const { name, end } = readName(query)
    asked.push(name)
    const answer = answers.get(name) ?? 'no_name'
    if (answer === 'silence') return
    socket.send(reply(query, end, query.readUInt16BE(end) === txt ? answer : []), from.port, from.address)
  })
  socket.bind(0, '127.0.0.1')
  await once(socket, 'listening')
  t.teardown(() => new Promise<void>((resolve) => socket.close(() => resolve())))
  return { address: `127.0.0.1:${socket.address().port}`, answers, asked }
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

function reply(query: Buffer, end: number, answer: Exclude<Answer, 'silence'>): Buffer {
  const records = typeof answer === 'string' ? [] : answer
  const header = Buffer.alloc(12)
  query.copy(header, 0, 0, 2)
  // a response, with recursion as it was desired, and available
  header.writeUInt16BE(0x8180 | (typeof answer === 'string' ? codes[answer] : 0), 2)
  header.writeUInt16BE(1, 4)
  header.writeUInt16BE(records.length, 6)
  const question = query.subarray(12, end + 4)
  return Buffer.concat([header, question, ...records.map((strings) => record([strings].flat()))])
}

function record(strings: string[]): Buffer {
  const data = Buffer.concat(strings.map((text) => Buffer.from([text.length, ...Buffer.from(text, 'latin1')])))
  const head = Buffer.alloc(12)
  // a pointer to the name of the question, then type, class IN, a life of 0 s and the size
  head.writeUInt16BE(0xc00c, 0)
  head.writeUInt16BE(txt, 2)
  head.writeUInt16BE(1, 4)
  head.writeUInt16BE(data.length, 10)
  return Buffer.concat([head, data])
}
