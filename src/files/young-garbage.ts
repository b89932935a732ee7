import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'

type Collect = (options: { type: 'minor' }) => void

let collect: Collect | undefined

/** Bytes that may wait to be freed. */
const mostBytes = 16 * 1024 * 1024
let waiting = 0

/**
 * Tells of bytes that came from a socket or a file and will not be needed again.
 *
 * Each piece of a body lies outside the heap, where little objects of the young generation hold it. They are too little for a
 * young collection to become due, so the pieces pile up until V8 marks the whole heap because of them, every 40 MiB, again and
 * again. A young collection in time takes about a millisecond, and keeps memory and the processor free.
 */
export function passed(bytes: number): void {
  waiting += bytes
  if (waiting < mostBytes) return
  waiting = 0
  collect ??= exposeGc()
  collect({ type: 'minor' })
}

/** With the first large body, and not where there is none. */
function exposeGc(): Collect {
  setFlagsFromString('--expose-gc')
  return runInNewContext('gc')
}
