import { randomBytes } from 'node:crypto'
import type { Access, Role } from '../src/auth/roles.ts'
import type { Person, Side, World } from './isolation-world.ts'

/*
 * The types of the table in test/authz-policy.ts, and functions that make its calls.
 */

/** A call that succeeds. If it consumes an object, the object was made for it. */
export type Call = {
  caller: Person | undefined
  /** The agency whose host is asked. Undefined: the general host. */
  side: Side | undefined
  params?: Record<string, string>
  query?: Record<string, string>
  body?: Record<string, unknown>
  /** A body that is not JSON. */
  payload?: Buffer
  headers?: Record<string, string>
}

export type ObjectKind = 'file' | 'invitation' | 'member' | 'session' | 'upload'

/** A call that is refused although the caller may call the operation: it asks for too much. */
export type Excess = {
  title: string
  status: number
  code: string
  /** The same call with an object that does not exist. Its reply must be the same. */
  likeNothing?: (world: World) => Promise<Call>
  /** The agency whose audit log must record the refusal: that of the caller. */
  denied?: 'a' | 'b'
  call: (world: World) => Promise<Call>
}

export type Policy = {
  access: Access
  status: number
  /** Makes a call that must succeed, in this agency and with this role. */
  make: (world: World, side: Side, role: Role) => Promise<Call>
  /** The kinds of objects that the parameters of the path name. */
  objects?: Record<string, ObjectKind>
  /** It is a list: it accepts cursors, and has more than one entry in each agency. */
  paged?: true
  /** Its reply has an ETag, and it accepts If-None-Match or If-Match. */
  tagged?: true
  /** It writes its change and an audit event in one transaction. */
  audited?: true
  /** It creates something. An Idempotency-Key of one agency must not have an effect in another. */
  creates?: true
  /** What a public operation does with a bearer token. */
  bearer?: 'ignored' | 'costly' | 'looked at' | 'signature'
  /** It answers also on hosts that are not served (`any`), or on the host of a suspended agency. */
  host?: 'any' | 'suspended'
  excesses?: Excess[]
  /** Calls that succeed although B has an object of the same name. */
  also?: { title: string; call: (world: World) => Promise<Call> }[]
}

/** A text that no other call has used. */
export const fresh = (prefix: string) => `${prefix}-${randomBytes(6).toString('hex')}`

/** A call by the person of the agency who has that role. */
export const standing =
  (more: (world: World, side: Side) => Partial<Call> | Promise<Partial<Call>> = () => ({})) =>
  async (world: World, side: Side, role: Role): Promise<Call> => ({
    caller: side.people[role],
    side,
    ...(await more(world, side))
  })

/** A call by a new person with that role, because the call may remove the caller. */
export const passing =
  (more: (world: World, side: Side, caller: Person) => Partial<Call> | Promise<Partial<Call>> = () => ({})) =>
  async (world: World, side: Side, role: Role): Promise<Call> => {
    const caller = await world.plantPerson(side, role)
    return { caller, side, ...(await more(world, side, caller)) }
  }

/** A call by the person of agency A who has that role. */
export const inFirst =
  (role: Role, more: (world: World) => Partial<Call> | Promise<Partial<Call>>) =>
  async (world: World): Promise<Call> => ({
    caller: world.a.people[role],
    side: world.a,
    ...(await more(world))
  })

export const openRead = (call: Partial<Call> = {}): Policy => ({
  access: 'public',
  status: 200,
  bearer: 'ignored',
  make: async (_, side) => ({ caller: undefined, side, ...call })
})

export const read = (access: Access, more: Partial<Policy> = {}): Policy => ({
  access,
  status: 200,
  make: standing(),
  ...more
})

export const forbidden = { status: 403, code: 'forbidden', denied: 'a' } as const
export const notFound = { status: 404, code: 'not_found' } as const
export const linkExpired = { status: 410, code: 'link_expired' } as const
