import { type Role, roles } from './roles.ts'

export type Revocation = {
  kind: 'session' | 'sessions' | 'member' | 'tenant' | 'plan'
  tenant_id: string
  subject: string
  state: string | null
  seconds_left: number
}
type Claims = { tenant_id: string; user_id: string; sid: string; role: Role }
/** A person's sessions that were opened up to the millisecond `through` are revoked, except the session `kept`. */
type Mark = { through: number; kept: string | undefined; stamp: number }

/** The number of generations. `beginReread` has no free one after 15 rereads in a row that did not end. */
const generations = 16
/** The number of role codes: see `codeOf`. */
const codes = 8
/** Entries that one step of `endReread` visits, so that a million entries do not block the event loop. */
const entriesPerStep = 10_000

/**
 * The list of revocations that access tokens are checked against, in memory. It is compact enough for a million
 * entries: each is a key and one small integer, the stamp, which holds the minute of its end, its generation and a
 * role.
 *
 * Entries end by this process's monotonic clock, and never early.
 *
 * To read all revocations again, the caller begins a new generation. The known entries stay in force meanwhile. Entries
 * that were not remembered again are dropped at the end.
 */
export function createRevocationList(now: () => number = () => performance.now()) {
  const sessions = new Map<string, number>()
  const members = new Map<string, number>()
  const marks = new Map<string, Mark>()
  const suspended = new Map<string, number>()
  const maps = [sessions, members, marks, suspended] as Map<string, number | Mark>[]
  let generation = 0
  /** The generation of the last complete reread. */
  let completeGeneration = 0
  /** Where `prune` goes on, and the map that it visits next. */
  let pruning: { entries: Map<string, number | Mark>; iterator: MapIterator<[string, number | Mark]> } | undefined
  let nextMap = 0

  const stampOf = (value: number | Mark) => (typeof value === 'number' ? value : value.stamp)
  const minuteOf = (value: number | Mark) => Math.floor(stampOf(value) / (codes * generations))
  const generationOf = (value: number | Mark) => Math.floor(stampOf(value) / codes) % generations

  /** Adds a revocation. Revocations of one subject must come in the order in which they were written. */
  function remember({ kind, tenant_id, subject, state, seconds_left }: Revocation): void {
    const minute = Math.ceil((now() / 1000 + seconds_left) / 60)
    const stamp = (minute * generations + generation) * codes
    if (kind === 'session') sessions.set(copyOf(subject), stamp)
    else if (kind === 'member') members.set(copyOf(tenant_id + subject), stamp + codeOf(state))
    else if (kind === 'sessions' && state !== null) {
      const kept = state.length > 36 ? copyOf(state.slice(37)) : undefined
      marks.set(copyOf(tenant_id + subject), { through: millisecondOf(state), kept, stamp })
    } else if (kind === 'tenant') {
      if (state === 'suspended') suspended.set(copyOf(subject), stamp)
      else suspended.delete(subject)
    }
  }

  return {
    remember,

    /** Adds one revocation a line: kind, tenant, subject, seconds left and, if there is one, the state. */
    rememberLines(lines: string): void {
      for (const line of lines.split('\n')) {
        const [kind, tenant_id = '', subject = '', seconds, ...state] = line.split(' ')
        remember({
          kind: kind as Revocation['kind'],
          tenant_id,
          subject,
          seconds_left: Number(seconds),
          state: state.length > 0 ? state.join(' ') : null
        })
      }
    },

    /** Returns the reason to refuse a token with these claims, or undefined for a valid one. */
    find({ tenant_id, user_id, sid, role }: Claims): 'revoked' | 'outdated' | 'suspended' | undefined {
      if (sessions.has(sid)) return 'revoked'
      const key = tenant_id + user_id
      const member = members.get(key)
      if (member !== undefined) {
        const code = member % codes
        if (code === 0) return 'revoked'
        if (roles[code - 1] !== role) return 'outdated'
      }
      if (marks.size > 0) {
        const mark = marks.get(key)
        if (mark !== undefined && millisecondOf(sid) <= mark.through && sid !== mark.kept) return 'revoked'
      }
      return suspended.has(tenant_id) ? 'suspended' : undefined
    },

    /**
     * Begins a new generation. Returns false when too many rereads have failed; then the caller has to `clear` the list
     * first.
     */
    beginReread(): boolean {
      const next = (generation + 1) % generations
      if (next === completeGeneration) return false
      generation = next
      return true
    },

    /**
     * Drops the entries that were not remembered again since `beginReread`. The caller may run other work between the
     * steps.
     */
    *endReread(): Generator<void> {
      completeGeneration = generation
      for (const entries of maps) {
        let visited = 0
        for (const [key, value] of entries) {
          if (generationOf(value) !== generation) entries.delete(key)
          if (++visited % entriesPerStep === 0) yield
        }
      }
    },

    clear(): void {
      for (const entries of maps) entries.clear()
      completeGeneration = generation
    },

    /**
     * Drops ended entries among the next ones that it visits: a hundredth of all, or 1000. With one call a second,
     * each entry is visited once in a minute or two.
     */
    prune(): void {
      const minute = now() / 60_000
      const most = Math.max(1000, Math.ceil(size() / 100))
      for (let visited = 0, finishedMaps = 0; visited < most && finishedMaps < maps.length; ) {
        if (!pruning) {
          const entries = maps[nextMap++ % maps.length] as Map<string, number | Mark>
          pruning = { entries, iterator: entries.entries() }
        }
        const next = pruning.iterator.next()
        if (next.done) {
          pruning = undefined
          finishedMaps++
          continue
        }
        visited++
        const [key, value] = next.value
        if (minuteOf(value) < minute) pruning.entries.delete(key)
      }
    },

    size
  }

  function size(): number {
    return sessions.size + members.size + marks.size + suspended.size
  }
}

/**
 * The code of a member's role in a stamp. 0: the person is no member any more. The highest code, for an unknown role,
 * matches no token.
 */
function codeOf(state: string | null): number {
  if (state === null) return 0
  const place = roles.indexOf(state as Role)
  return place === -1 ? codes - 1 : place + 1
}

/** The first 48 bits of a session's id (UUID version 7): the millisecond in which the session was opened. */
const millisecondOf = (id: string) => Number.parseInt(id.slice(0, 8) + id.slice(9, 13), 16)

/**
 * Copies a string. V8 keeps both parts of a joined string, and the whole page of a part that was cut from it; a copy
 * refers to neither.
 */
const copyOf = (text: string) => Buffer.from(text, 'latin1').toString('latin1')
