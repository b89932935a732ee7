import { randomBytes } from 'node:crypto'
import type { Access, Role } from '../src/auth/roles.ts'
import type { Person, Side, World } from './isolation-world.ts'

/*
 * How an entry of the table in test/authz-policy.ts is written: its types, and functions that make the calls.
 */

/** A call that succeeds, on objects that were made for it where it uses them up. */
export type Call = {
  caller: Person | undefined
  /** Where the caller is at home. Undefined: the general host. */
  side: Side | undefined
  params?: Record<string, string>
  query?: Record<string, string>
  body?: Record<string, unknown>
  /** What is no JSON. */
  payload?: Buffer
  headers?: Record<string, string>
}

export type ObjectKind = 'file' | 'invitation' | 'member' | 'session' | 'upload'

/** A call by which somebody who may call the operation asks for too much. */
export type Excess = {
  title: string
  status: number
  code: string
  /** Whether the reply has to be the same when the object of somebody else is replaced by none at all. */
  likeNothing?: (world: World) => Promise<Call>
  /** The agency of the signed-in person who tries it, in whose audit log it has to be. */
  denied?: 'a' | 'b'
  call: (world: World) => Promise<Call>
}

export type Policy = {
  access: Access
  status: number
  /** The positive control, in an agency, as a person with a role there. */
  make: (world: World, side: Side, role: Role) => Promise<Call>
  /** What the path's parameters name. */
  objects?: Record<string, ObjectKind>
  /** A list: it takes cursors, and has more than one entry. */
  paged?: true
  /** Its reply has a tag, and takes If-None-Match or If-Match. */
  tagged?: true
  /** Writes an audit event with its change; neither is there without the other. */
  audited?: true
  /** It makes something, so that a key for repetition must not reach across agencies. */
  creates?: true
  /** What a bearer means to an operation that is public. */
  bearer?: 'ignored' | 'costly' | 'looked at' | 'signature'
  /** Answers on hosts that are not served, or on that of a suspended agency. */
  host?: 'any' | 'suspended'
  excesses?: Excess[]
  /** Calls that succeed although B has the like. */
  also?: { title: string; call: (world: World) => Promise<Call> }[]
}

export const fresh = (prefix: string) => `${prefix}-${randomBytes(6).toString('hex')}`

/** By the person with that role who is always there. */
export const standing =
  (more: (world: World, side: Side) => Partial<Call> | Promise<Partial<Call>> = () => ({})) =>
  async (world: World, side: Side, role: Role): Promise<Call> => ({
    caller: side.people[role],
    side,
    ...(await more(world, side))
  })

/** By somebody who is made for it, in an agency that keeps its owner. */
export const passing =
  (more: (world: World, side: Side, caller: Person) => Partial<Call> | Promise<Partial<Call>> = () => ({})) =>
  async (world: World, side: Side, role: Role): Promise<Call> => {
    const caller = await world.plantPerson(side, role)
    return { caller, side, ...(await more(world, side, caller)) }
  }

/** As the person who is always there in the first agency. */
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
