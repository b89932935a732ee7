import { type Call, inFirst, notFound, type Policy, passing, read, standing } from './authz-calls.ts'
import { type Reply, send } from './harness.ts'
import type { Person, Side, World } from './isolation-world.ts'
import { createDevice, type Device } from './passkey-device.ts'
import { bearer, unknownId } from './requests.ts'

/*
 * The entries of test/authz-policy.ts for passkeys.
 */

const originAt = (side: Side) => `http://${side.host}:8080`

function ask(world: World, side: Side, url: string, payload: object | undefined, caller?: Person): Promise<Reply> {
  const headers = { origin: originAt(side), ...(caller && bearer(caller.token)) }
  return send(world.app, side.host, {
    method: 'POST',
    url: `/api/v1${url}`,
    headers,
    ...(payload && { payload })
  })
}

/** What a new device of the person answers to options that were asked for. */
async function makePasskey(world: World, side: Side, caller: Person) {
  const device = createDevice(originAt(side))
  const options = (await ask(world, side, '/users/me/passkeys/options', undefined, caller)).json()
  return { device, body: { name: `${side.canary} phone`, passkey: device.create(options) } }
}

async function plantPasskey(world: World, side: Side, caller: Person): Promise<{ device: Device; id: string }> {
  const { device, body } = await makePasskey(world, side, caller)
  const reply = await ask(world, side, '/users/me/passkeys', body, caller)
  if (reply.statusCode !== 201) throw new Error(`passkey: ${reply.statusCode} ${reply.body}`)
  return { device, id: reply.json().id }
}

async function atSignIn(world: World, side: Side): Promise<Call> {
  const { device } = await plantPasskey(world, side, await world.plantPerson(side, 'member'))
  const options = (await ask(world, side, '/auth/passkeys/options', undefined)).json()
  return { caller: undefined, side, body: { passkey: device.get(options) } }
}

async function atSecondStep(world: World, side: Side): Promise<Call> {
  const person = await world.plantPerson(side, 'member')
  await plantPasskey(world, side, person)
  const subject = { tenant_id: side.id, user_id: person.id, password_version: 1 }
  return { caller: undefined, side, body: { mfa_token: world.app.mfaTokens.issue('sign_in', subject) } }
}

/** Somebody whose agency demands a factor, and who has none, makes a passkey. */
async function atEnrollment(world: World, side: Side, complete: boolean): Promise<Call> {
  const person = await world.plantPerson(side, 'member')
  const subject = { tenant_id: side.id, user_id: person.id, password_version: 1 }
  const mfa_token = world.app.mfaTokens.issue('enrollment', subject)
  if (!complete) return { caller: undefined, side, body: { mfa_token } }
  const options = (await ask(world, side, '/auth/mfa/passkeys/options', { mfa_token })).json()
  const passkey = createDevice(originAt(side)).create(options)
  return { caller: undefined, side, body: { mfa_token, name: 'Phone', passkey } }
}

const enrolledElsewhere = (complete: boolean) => ({
  title: "the token of a sign-in to another agency on this one's host",
  status: 403,
  code: 'tenant_mismatch',
  call: async (world: World) => ({ ...(await atEnrollment(world, world.b, complete)), side: world.a })
})

/** The passkey of another person: in another agency, or in the same one. */
const ofAnother = (body: object) => [
  {
    title: 'a passkey of somebody in another agency',
    ...notFound,
    likeNothing: inFirst('member', () => ({ ...body, params: { id: unknownId } })),
    call: inFirst('member', async (world) => {
      const { id } = await plantPasskey(world, world.b, await world.plantPerson(world.b, 'member'))
      return { ...body, params: { id } }
    })
  },
  {
    title: 'a passkey of somebody in the same agency',
    ...notFound,
    call: inFirst('owner', async (world) => {
      const { id } = await plantPasskey(world, world.a, await world.plantPerson(world.a, 'member'))
      return { ...body, params: { id } }
    })
  }
]

const withPasskey = (body: object = {}) =>
  passing(async (world, side, caller) => ({ ...body, params: { id: (await plantPasskey(world, side, caller)).id } }))

export const passkeyPolicies: Record<string, Policy> = {
  listPasskeys: read('user'),
  startPasskey: { access: 'user', status: 200, make: passing() },
  createPasskey: {
    access: 'user',
    status: 201,
    audited: true,
    make: passing(async (world, side, caller) => ({ body: (await makePasskey(world, side, caller)).body }))
  },
  renamePasskey: {
    access: 'user',
    status: 200,
    make: withPasskey({ body: { name: 'Another name' } }),
    excesses: ofAnother({ body: { name: 'Another name' } })
  },
  deletePasskey: { access: 'user', status: 204, audited: true, make: withPasskey(), excesses: ofAnother({}) },
  startPasskeyProof: { access: 'user', status: 200, make: standing() },
  startPasskeySignIn: {
    access: 'public',
    status: 200,
    bearer: 'ignored',
    make: async (_, side) => ({ caller: undefined, side })
  },
  signInWithPasskey: {
    access: 'public',
    status: 200,
    bearer: 'costly',
    audited: true,
    make: atSignIn,
    excesses: [
      {
        title: "what was made on the page of another agency, on this one's host",
        status: 401,
        code: 'invalid_credentials',
        call: async (world) => ({ ...(await atSignIn(world, world.b)), side: world.a })
      }
    ]
  },
  startPasskeyEnrollment: {
    access: 'public',
    status: 200,
    bearer: 'costly',
    make: (world, side) => atEnrollment(world, side, false),
    excesses: [enrolledElsewhere(false)]
  },
  completeSignInWithNewPasskey: {
    access: 'public',
    status: 200,
    bearer: 'costly',
    audited: true,
    make: (world, side) => atEnrollment(world, side, true),
    excesses: [enrolledElsewhere(true)]
  },
  startPasskeyFactor: {
    access: 'public',
    status: 200,
    bearer: 'costly',
    make: atSecondStep,
    excesses: [
      {
        title: "the token of a sign-in to another agency on this one's host",
        status: 403,
        code: 'tenant_mismatch',
        call: async (world) => ({ ...(await atSecondStep(world, world.b)), side: world.a })
      }
    ]
  }
}
