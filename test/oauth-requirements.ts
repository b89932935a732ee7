/*
 * The points of RFC 9700 (Best Current Practice for OAuth 2.0 Security), what each demands in our words, and the test that
 * shows it. Those of chapter 10 of OWASP ASVS are in test/asvs-requirements.ts. docs/oauth-requirements.md is made from both.
 *
 * The product is a client of providers (Google, GitHub, those of agencies), and to its own pages and apps an authorization
 * server and a resource server.
 */

export type Shown = [file: string, title: string]
export type Requirement = {
  id: string
  demands: string
} & ({ shown: Shown[] } | { concerns: 'nobody' | 'not yet'; why: string })

export const grants = (title: string): Shown => ['test/oauth-grants.test.ts', title]
export const attack = (title: string): Shown => ['test/oauth-attacks.test.ts', title]
export const flow = (title: string): Shown => ['test/take-overs-of-flows.ts', title]
export const provider = (title: string): Shown => ['test/take-overs-at-providers.ts', title]
export const signIn = (title: string): Shown => ['test/oauth.test.ts', title]
export const token = (title: string): Shown => ['test/tokens.test.ts', title]
export const refreshing = (title: string): Shown => ['test/refresh-tokens.test.ts', title]
export const bound = (title: string): Shown => ['test/dpop.test.ts', title]
export const once = (title: string): Shown => ['test/single-use-kinds.ts', title]
export const outbound = (title: string): Shown => ['test/provider-faults.test.ts', title]
export const nobody = (id: string, demands: string, why: string): Requirement => ({
  id,
  demands,
  concerns: 'nobody',
  why
})
export const notYet = (id: string, demands: string, why: string): Requirement => ({
  id,
  demands,
  concerns: 'not yet',
  why
})

/** The sections of RFC 9700 that recommend something. Letters tell the recommendations of one section apart. */
export const rfc9700: Requirement[] = [
  {
    id: '2.1 a',
    demands: 'Addresses to which a sign-in leads are compared letter by letter with those that are known.',
    shown: [attack('a sign-in leads to no address that is not listed'), flow('an open redirect to the attacker’s page')]
  },
  {
    id: '2.1 b',
    demands: 'Client and server redirect nobody to an address that a request has chosen freely.',
    shown: [
      flow('an open redirect to the attacker’s page'),
      flow('a page that the attacker’s agency allows, for a session that is good in all agencies')
    ]
  },
  {
    id: '2.1 c',
    demands: 'The client prevents that somebody else’s answer is put into a browser (CSRF).',
    shown: [
      flow('a callback of the attacker, opened in the victim’s browser (login CSRF)'),
      attack('an answer in another browser is refused, and nothing is asked of the provider')
    ]
  },
  {
    id: '2.1 d',
    demands: 'A client of several authorization servers prevents that they are mixed up.',
    shown: [
      provider('a mix-up: the attacker’s provider sends the victim on to that of everybody'),
      attack('an answer that names another issuer is refused')
    ]
  },
  {
    id: '2.1 e',
    demands: 'A request that carries credentials is not passed on by a redirect.',
    shown: [grants('redirect by 302, which repeats no body, and only a GET')]
  },
  {
    id: '2.1.1 a',
    demands: 'Clients use PKCE with S256, with a challenge for each transaction that is bound to client and browser.',
    shown: [
      signIn('the request to the provider has a state, a nonce and PKCE, and the verifier stays here'),
      grants('begin each flow with other secrets, of 256 bits')
    ]
  },
  {
    id: '2.1.1 b',
    demands: 'The server supports PKCE, and takes a verifier where, and only where, there was a challenge.',
    shown: [
      attack('a sign-in without PKCE of the client does not begin'),
      flow('a sign-in that is begun without PKCE, or with its plain form')
    ]
  },
  {
    id: '2.1.1 c',
    demands: 'The nonce of OpenID Connect is checked where it is used.',
    shown: [attack('with another nonce'), attack('without a nonce')]
  },
  {
    id: '2.1.2',
    demands: 'No access token is given in the answer of the authorization endpoint (no implicit grant).',
    shown: [
      grants('are asked for a code in the query, and nothing else'),
      grants('give codes and errors in the query of the page, and never a token')
    ]
  },
  {
    id: '2.2.1',
    demands: 'Access tokens are bound to their sender (DPoP), so that a stolen one is of no use.',
    shown: [
      bound('is of use with proofs only'),
      ['test/dpop-attacks.test.ts', 'succeeds in none of the ways to send the tokens alone']
    ]
  },
  {
    id: '2.2.2',
    demands:
      'Refresh tokens of public clients are bound to the sender, or each use replaces them and a second use ends them.',
    shown: [
      refreshing('gives a new pair of the same session'),
      refreshing('the predecessor ends the family, and that is recorded')
    ]
  },
  {
    id: '2.3',
    demands: 'An access token may do what is needed and no more, and is for one resource server.',
    shown: [
      ['test/hosts.test.ts', 'a token is for one agency'],
      ['test/identity-providers.test.ts', 'every operation on the person in all agencies refuses it'],
      token('what an access token must be')
    ]
  },
  {
    id: '2.4',
    demands: 'The grant by password of OAuth is not used.',
    shown: [grants('know no other grant than the code')]
  },
  {
    id: '2.5',
    demands: 'Clients that can keep a secret authenticate at the token endpoint.',
    shown: [
      signIn('a signed-in person links it, and signs in with it'),
      outbound('a permission that was taken back, and a code that GitHub refuses, sign nobody in')
    ]
  },
  {
    id: '2.6 a',
    demands: 'The client uses the metadata that a server publishes, of the issuer that was configured.',
    shown: [
      provider('a provider that publishes the issuer of everybody as its own'),
      outbound('a discovery that fails is a problem at the start, and is tried again')
    ]
  },
  {
    id: '2.6 b',
    demands: 'Answers with codes are not sent to addresses without TLS, but to this machine for native apps.',
    shown: [attack('a sign-in leads to no address that is not listed')]
  },
  {
    id: '2.6 c',
    demands: 'The authorization endpoint lets no script of another origin read it (no CORS).',
    shown: [grants('are read by no script of a page, but for the exchange of a code')]
  },
  {
    id: '2.6 d',
    demands: 'Requests between the servers go by TLS, end to end.',
    shown: [outbound('go by https only, and carry no password of an address')]
  },
  {
    id: '4.1',
    demands: 'No pattern decides about addresses of clients, and none of them is an open redirector.',
    shown: [attack('a sign-in leads to no address that is not listed')]
  },
  {
    id: '4.2',
    demands: 'Codes and states do not leak by the Referer header, and are worth nothing where they do.',
    shown: [
      grants('are in no frame, no cache and no Referer'),
      attack('a stolen code is nothing without the verifier, and is used up by the attempt')
    ]
  },
  {
    id: '4.3.1',
    demands: 'A code in the history of a browser is worth nothing.',
    shown: [
      once('a sign-in code'),
      attack('a code is dead after a minute, after a new password, and when the identity is unlinked')
    ]
  },
  {
    id: '4.3.2',
    demands: 'No access token is in the address of a request.',
    shown: [
      token('a token in the query or in a form is not looked at'),
      grants('take no access token in the query or in a body')
    ]
  },
  {
    id: '4.4',
    demands:
      'A server that is the attacker’s gets no code of another one, by iss (RFC 9207) or by an address for each server.',
    shown: [
      provider('a mix-up: the attacker’s provider sends the victim on to that of everybody'),
      provider('an answer at the address of another provider'),
      attack('an answer that names another issuer is refused')
    ]
  },
  {
    id: '4.5',
    demands: 'A stolen code cannot be put into another session of the client.',
    shown: [
      flow('a code of the provider, put into the attacker’s own flow'),
      attack("a code of somebody else's sign-in at the provider is refused by its PKCE"),
      grants('ends the session that its first use has opened, and no other one')
    ]
  },
  {
    id: '4.6',
    demands: 'A stolen access token cannot be put into the client.',
    shown: [
      grants('give codes and errors in the query of the page, and never a token'),
      grants('take what a provider says about a person from that person only')
    ]
  },
  {
    id: '4.7',
    demands: 'The address to which a provider sends people back is protected against CSRF.',
    shown: [
      flow('a callback of the attacker, opened in the victim’s browser (login CSRF)'),
      flow('a link that the attacker has begun, followed by the victim with another identity')
    ]
  },
  {
    id: '4.8',
    demands: 'PKCE cannot be left out by changing the request.',
    shown: [flow('a sign-in that is begun without PKCE, or with its plain form')]
  },
  {
    id: '4.9',
    demands: 'What leaks at a resource server, by its logs or by another service, is of no use elsewhere.',
    shown: [
      attack('no log line, audit row or stored row has a secret, a code or a token'),
      token('no token of another purpose is an access token, nor the reverse')
    ]
  },
  {
    id: '4.10',
    demands: 'A stolen access token is of no use elsewhere: it is bound to its sender and to one resource server.',
    shown: [
      ['test/dpop-attacks.test.ts', 'succeeds in none of the ways to send the tokens alone'],
      ['test/dpop-attacks.test.ts', 'can use no proof again, nor elsewhere'],
      ['test/hosts.test.ts', 'a token is for one agency']
    ]
  },
  {
    id: '4.11.1',
    demands: 'The client is no open redirector.',
    shown: [flow('an open redirect to the attacker’s page')]
  },
  {
    id: '4.11.2',
    demands: 'The server sends nobody to an address before it is known to be the client’s, also not with an error.',
    shown: [
      attack('a sign-in leads to no address that is not listed'),
      grants('redirect by 302, which repeats no body, and only a GET')
    ]
  },
  {
    id: '4.12',
    demands: 'No redirect has status 307, by which a browser would send a password on.',
    shown: [grants('redirect by 302, which repeats no body, and only a GET')]
  },
  {
    id: '4.13',
    demands: 'What a reverse proxy adds to a request cannot be forged by a client.',
    shown: [
      ['test/addresses.test.ts', 'behind a proxy'],
      ['test/hosts.test.ts', 'is the only thing that names the agency']
    ]
  },
  {
    id: '4.14',
    demands:
      'A stolen refresh token is found out by its second use, is bound to what was granted, and ends when it is not used.',
    shown: [
      refreshing('while a stolen token is found out leaves nobody with a live one'),
      refreshing('a session that is not used ends'),
      ['test/take-overs-of-sessions.ts', 'a stolen refresh token, which the victim uses as well']
    ]
  },
  nobody(
    '4.15',
    'A client that acts for itself cannot be taken for a person.',
    'There are no clients that act for themselves: the grant of client credentials does not exist.'
  ),
  {
    id: '4.16',
    demands: 'Pages of a sign-in cannot be framed.',
    shown: [grants('are in no frame, no cache and no Referer')]
  },
  {
    id: '4.17',
    demands: 'Answers that go from one window to another name the exact origin of the window.',
    shown: [grants('are asked for a code in the query, and nothing else')]
  }
]
