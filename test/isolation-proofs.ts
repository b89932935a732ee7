import type { FastifyInstance } from 'fastify'
import { createProofNonces } from '../src/auth/dpop/nonces.ts'
import { createKeyRing } from '../src/keys.ts'
import { createProofKey, makeProof, type ProofKey } from './dpop.ts'
import type { Person, ProvenRequest, World, WrongToken } from './isolation-world.ts'
import { decode, type Json } from './tokens.ts'

/*
 * Tokens of the isolation matrix that are bound to a key of the client (DPoP).
 */

/** Tokens that are bound to a key, and proofs of it. */
export function proofsOf(app: FastifyInstance, secrets: readonly string[]) {
  const nonces = createProofNonces(createKeyRing(secrets, 'dpop nonce'))
  const bind = ({ id: user_id, email, role, sid, token }: Person, { thumbprint: key_thumbprint }: ProofKey) => {
    const { tenant_id } = decode(token).claims as { tenant_id: string }
    return app.tokens.issue({ user_id, email, tenant_id, role, sid, key_thumbprint }, 0).access_token
  }
  const prove = (key: ProofKey, token: string, { method, host, url }: ProvenRequest, change: Json = {}) =>
    makeProof(key, { method, url: `http://${host}${url}`, token, nonce: nonces.issue() }, change)
  const key = createProofKey()
  return {
    bind,
    prove,
    proveAs(person: Person, request: ProvenRequest) {
      const token = bind(person, key)
      return { authorization: `DPoP ${token}`, dpop: prove(key, token, request) }
    }
  }
}

/** A token of an owner of A that is bound to a key, as somebody has it who has stolen it. */
export async function makeWrongProofs(world: World, secrets: readonly string[]): Promise<WrongToken[]> {
  const { app, a, b } = world
  const { bind, prove } = proofsOf(app, secrets)
  const [key, other] = [createProofKey(), createProofKey()]
  const token = bind(await world.plantPerson(a, 'owner'), key)
  const invalid = { authorization: `DPoP ${token}`, status: 401, code: 'invalid_dpop_proof' }
  const unbound = (await world.plantPerson(a, 'owner')).token
  return [
    {
      ...invalid,
      id: 'D1',
      title: 'bound, as a bearer token',
      authorization: `Bearer ${token}`,
      code: 'invalid_token'
    },
    {
      ...{ ...invalid, id: 'D1', title: 'bound, as a bearer token with a proof', code: 'invalid_token' },
      ...{ authorization: `Bearer ${token}`, proof: (request) => prove(key, token, request) }
    },
    { ...invalid, id: 'D2', title: 'bound, without a proof' },
    { ...invalid, id: 'D3', title: 'with the proof of another key', proof: (request) => prove(other, token, request) },
    {
      ...{ ...invalid, id: 'D4', title: 'with a proof for the host of B' },
      proof: (request) => prove(key, token, { ...request, host: b.host })
    },
    {
      ...{ ...invalid, id: 'D5', title: 'with a proof from before', code: 'use_dpop_nonce' },
      proof: (request) => prove(key, token, request, { nonce: undefined })
    },
    {
      ...invalid,
      id: 'D6',
      title: 'not bound, as a bound one',
      authorization: `DPoP ${unbound}`,
      code: 'invalid_token'
    }
  ]
}
