import { type Role, roles } from './roles.ts'

export type Revoked = {
  kind: 'session' | 'sessions' | 'member' | 'tenant' | 'plan'
  tenant_id: string
  subject: string
  state: string | null
  seconds_left: number
}
type Bearer = { tenant_id: string; user_id: string; sid: string; role: Role }
type Mark = { through: number; kept: string | undefined; stamp: number }

/** How many reads of everything can fail in a row before `beginReread` has no number left for the next. */
const generations = 16
const codes = 8
/** Entries that one step looks at, so that a million of them block nothing. */
const slice = 10_000

/**
 * Which tokens are refused, in as little memory as a million entries need: a key, and one small integer that holds the minute
 * of the end, the generation and a role.
 *
 * Entries end by a clock of this process that nobody sets, and never early. Whoever reads everything again begins a
 * generation: what is known stays known meanwhile, and what was not seen again is dropped at the end.
 */
export function createRevocationList(now: () => number = () => performance.now()) {
  const sessions = new Map<string, number>()
  const members = new Map<string, number>()
  const marks = new Map<string, Mark>()
  const suspended = new Map<string, number>()
  const everything = [sessions, members, marks, suspended] as Map<string, number | Mark>[]
  let generation = 0
  let reliable = 0
  let walk: { entries: Map<string, number | Mark>; iterator: MapIterator<[string, number | Mark]> } | undefined
  let turn = 0

  const stampOf = (value: number | Mark) => (typeof value === 'number' ? value : value.stamp)
  const minuteOf = (value: number | Mark) => Math.floor(stampOf(value) / (codes * generations))
  const generationOf = (value: number | Mark) => Math.floor(stampOf(value) / codes) % generations

  /** Entries about one subject come in the order in which they were written. */
  function remember({ kind, tenant_id, subject, state, seconds_left }: Revoked): void {
    const minute = Math.ceil((now() / 1000 + seconds_left) / 60)
    const stamp = (minute * generations + generation) * codes
    if (kind === 'session') sessions.set(flat(subject), stamp)
    else if (kind === 'member') members.set(flat(tenant_id + subject), stamp + codeOf(state))
    else if (kind === 'sessions' && state !== null) {
      const kept = state.length > 36 ? flat(state.slice(37)) : undefined
      marks.set(flat(tenant_id + subject), { through: millisecondOf(state), kept, stamp })
    } else if (kind === 'tenant') {
      if (state === 'suspended') suspended.set(flat(subject), stamp)
      else suspended.delete(subject)
    }
  }

  return {
    remember,

    /** Remembers a line for each entry: kind, tenant, subject, seconds left, and the state if there is one. */
    rememberLines(lines: string): void {
      for (const line of lines.split('\n')) {
        const [kind, tenant_id = '', subject = '', seconds, ...state] = line.split(' ')
        remember({
          kind: kind as Revoked['kind'],
          tenant_id,
          subject,
          seconds_left: Number(seconds),
          state: state.length > 0 ? state.join(' ') : null
        })
      }
    },

    /** Why a token with these claims is refused. */
    find({ tenant_id, user_id, sid, role }: Bearer): 'revoked' | 'outdated' | 'suspended' | undefined {
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

    /** False: everything was read in vain too often, and only `clear` begins anew. */
    beginReread(): boolean {
      const next = (generation + 1) % generations
      if (next === reliable) return false
      generation = next
      return true
    },

    /** Drops what was not seen again since `beginReread`. The caller lets others run between the steps. */
    *endReread(): Generator<void> {
      reliable = generation
      for (const entries of everything) {
        let looked = 0
        for (const [key, value] of entries) {
          if (generationOf(value) !== generation) entries.delete(key)
          if (++looked % slice === 0) yield
        }
      }
    },

    clear(): void {
      for (const entries of everything) entries.clear()
      reliable = generation
    },

    /** Forgets entries that have ended, of so many that it looks at. Each is looked at once in a minute or two. */
    prune(): void {
      const minute = now() / 60_000
      const most = Math.max(1000, Math.ceil(size() / 100))
      for (let looked = 0, ended = 0; looked < most && ended < everything.length; ) {
        if (!walk) {
          const entries = everything[turn++ % everything.length] as Map<string, number | Mark>
          walk = { entries, iterator: entries.entries() }
        }
        const next = walk.iterator.next()
        if (next.done) {
          walk = undefined
          ended++
          continue
        }
        looked++
        const [key, value] = next.value
        if (minuteOf(value) < minute) walk.entries.delete(key)
      }
    },

    size
  }

  function size(): number {
    return sessions.size + members.size + marks.size + suspended.size
  }
}

/** 0: no member any more. A word that is no role is nobody's. */
function codeOf(state: string | null): number {
  if (state === null) return 0
  const place = roles.indexOf(state as Role)
  return place === -1 ? codes - 1 : place + 1
}

/** The first 48 bits of an id: the millisecond in which a session was opened. */
const millisecondOf = (id: string) => Number.parseInt(id.slice(0, 8) + id.slice(9, 13), 16)

/** A joined string keeps both of its parts, and a part of a page the whole page; a copy is small. */
const flat = (text: string) => Buffer.from(text, 'latin1').toString('latin1')
