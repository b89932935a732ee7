import {
  attack,
  flow,
  grants,
  nobody,
  notYet,
  outbound,
  provider,
  type Requirement,
  refreshing,
  signIn,
  token
} from './oauth-requirements.ts'

/** The points of chapter 10 of OWASP ASVS 5.0.0, as those of RFC 9700 in test/oauth-requirements.ts. */
export const asvs10: Requirement[] = [
  {
    id: '10.1.1',
    demands: 'Tokens go only to those who need them: those of a provider stay in the server.',
    shown: [
      grants('give codes and errors in the query of the page, and never a token'),
      attack('no log line, audit row or stored row has a secret, a code or a token')
    ]
  },
  {
    id: '10.1.2',
    demands:
      'The client takes codes and id_tokens only of a flow that the same browser has begun, with secrets of its own.',
    shown: [
      attack('an answer in another browser is refused, and nothing is asked of the provider'),
      grants('begin each flow with other secrets, of 256 bits'),
      attack('with another nonce')
    ]
  },
  {
    id: '10.2.1',
    demands: 'The code flow is protected against CSRF, by PKCE or by the state.',
    shown: [
      flow('a callback of the attacker, opened in the victim’s browser (login CSRF)'),
      attack('an answer with the state of another tab, or without one, is refused')
    ]
  },
  {
    id: '10.2.2',
    demands: 'Several authorization servers cannot be mixed up.',
    shown: [
      provider('a mix-up: the attacker’s provider sends the victim on to that of everybody'),
      attack('an answer that names another issuer is refused')
    ]
  },
  {
    id: '10.2.3',
    demands: 'The client asks for the scopes that it needs, and no others.',
    shown: [grants('ask a provider for a code, with the scopes that are needed and no others')]
  },
  {
    id: '10.3.1',
    demands: 'The API takes only access tokens that are meant for it.',
    shown: [token('every claim is demanded, and of its own kind')]
  },
  {
    id: '10.3.2',
    demands: 'What an access token allows decides what a request may do.',
    shown: [
      ['test/admission.test.ts', 'a role that is too low is refused, and remembered as an attempt'],
      ['test/hosts.test.ts', 'on the host of another nothing answers it but 403']
    ]
  },
  {
    id: '10.3.3',
    demands: 'A person is known by claims that never become somebody else’s.',
    shown: [token('what the token says of the e-mail decides nothing')]
  },
  {
    id: '10.3.4',
    demands: 'Where a recent or a stronger sign-in is needed, the API makes sure of it.',
    shown: [
      ['test/take-overs-of-sessions.ts', 'a stolen access token, to get another way in'],
      ['test/identity-providers.test.ts', 'nobody else sees them, and changes need a fresh sign-in']
    ]
  },
  {
    id: '10.3.5',
    demands:
      'The API takes stolen access tokens from nobody: they are bound to their sender (DPoP). Clients choose it.',
    shown: [
      ['test/dpop-attacks.test.ts', 'succeeds in none of the ways to send the tokens alone'],
      ['test/dpop-attacks.test.ts', 'cannot change the key of a session, nor take it away']
    ]
  },
  {
    id: '10.4.1',
    demands: 'Addresses to which a sign-in leads are compared exactly with a list of the client.',
    shown: [attack('a sign-in leads to no address that is not listed')]
  },
  {
    id: '10.4.2',
    demands: 'A code is good once. A second valid use is refused, and ends what the first one has opened.',
    shown: [
      grants('ends the session that its first use has opened, and no other one'),
      grants('leaves one session or none, when it is used many times at once'),
      grants('ends the session that a second factor has completed, or keeps it from being opened')
    ]
  },
  {
    id: '10.4.3',
    demands: 'A code is good for a minute at most.',
    shown: [attack('a code is dead after a minute, after a new password, and when the identity is unlinked')]
  },
  {
    id: '10.4.4',
    demands: 'A client uses the grants that it needs. Implicit and password are not among them.',
    shown: [grants('know no other grant than the code'), grants('are asked for a code in the query, and nothing else')]
  },
  {
    id: '10.4.5',
    demands: 'A refresh token that was used is dead, and its second use ends all of its family.',
    shown: [
      refreshing('the predecessor ends the family, and that is recorded'),
      refreshing('with the grandparent ends the family, though it is within the grace')
    ]
  },
  {
    id: '10.4.6',
    demands: 'The code grant demands PKCE with S256, and its verifier at the token endpoint.',
    shown: [
      flow('a sign-in that is begun without PKCE, or with its plain form'),
      flow('a stolen sign-in code, without the verifier')
    ]
  },
  nobody(
    '10.4.7',
    'Clients that register themselves are checked.',
    'Clients can not register themselves. The test "register no clients, publish no keys and log nobody out for a provider" shows that there is no such door.'
  ),
  {
    id: '10.4.8',
    demands: 'Refresh tokens have an absolute end.',
    shown: [refreshing('a session ends at its greatest age, however much it is used')]
  },
  {
    id: '10.4.9',
    demands: 'A person can end refresh tokens and sessions.',
    shown: [
      grants('a session of a person is ended by that person'),
      ['test/sessions.test.ts', 'can be ended all but this one']
    ]
  },
  nobody(
    '10.4.10',
    'Confidential clients authenticate at the server.',
    'All clients of the server are pages and apps on the devices of people, which can keep no secret. PKCE binds them.'
  ),
  nobody(
    '10.4.11',
    'Clients get the scopes that they need.',
    'There are no scopes: the role of a person in an agency decides, for pages and apps alike.'
  ),
  {
    id: '10.4.12',
    demands: 'A client gets answers in the response mode that it needs, and in no other one.',
    shown: [grants('are asked for a code in the query, and nothing else')]
  },
  notYet(
    '10.4.13',
    'Requests for a code are pushed to the server first (PAR).',
    'Level 3. Clients are public, so a pushed request would prove nothing about them. What a request says is sealed in the cookie of its flow.'
  ),
  notYet(
    '10.4.14',
    'The server gives no access tokens but those that are bound to their sender.',
    'Level 3. It gives bound ones to each client that proves a key (test/dpop-doors.test.ts), and others to clients that prove none: the contract promises plain tokens to those.'
  ),
  nobody(
    '10.4.15',
    'A backend says what is granted (authorization_details), and not its user.',
    'Nothing is granted by authorization_details, and no client is a backend.'
  ),
  notYet(
    '10.4.16',
    'Clients authenticate by a key and not by a shared secret.',
    'Level 3. Clients on the devices of people have nothing to authenticate with; towards providers the server uses the secret that all of them know.'
  ),
  {
    id: '10.5.1',
    demands: 'An id_token is not used twice, by its nonce.',
    shown: [attack('with another nonce'), provider('an id_token that the provider of everybody gave to somebody else')]
  },
  {
    id: '10.5.2',
    demands: 'A person is known by the subject of an issuer, which never becomes somebody else’s.',
    shown: [
      signIn('a changed address at the provider changes nothing'),
      provider('a name at GitHub that its owner gave up')
    ]
  },
  {
    id: '10.5.3',
    demands: 'Metadata that names another issuer than the configured one is refused.',
    shown: [
      provider('a provider that publishes the issuer of everybody as its own'),
      outbound('a discovery that fails is a problem at the start, and is tried again')
    ]
  },
  {
    id: '10.5.4',
    demands: 'An id_token is for this client.',
    shown: [
      attack('for another client'),
      attack('for another client as well, without saying for whom'),
      attack('of another party')
    ]
  },
  nobody(
    '10.5.5',
    'A logout token of a provider is checked.',
    'Providers log nobody out: there is no back-channel logout. The test "register no clients, publish no keys and log nobody out for a provider" shows it.'
  ),
  nobody(
    '10.6.1',
    'An OpenID provider gives codes, and no tokens, in its answers.',
    'The server is no OpenID provider. It gives no id_token.'
  ),
  nobody(
    '10.6.2',
    'Nobody is logged out by a forged request of a relying party.',
    'The server is no OpenID provider. Only the tokens of a session sign it out.'
  ),
  nobody(
    '10.7.1',
    'A person agrees to each request of a client.',
    'All clients belong to the agency or to the operator, and are listed. Nobody else’s client can ask for anything.'
  ),
  nobody('10.7.2', 'A person sees what they agree to.', 'Nobody is asked for consent: see 10.7.1.'),
  nobody(
    '10.7.3',
    'A person can take consent back.',
    'Nobody is asked for consent: see 10.7.1. Sessions and linked sign-ins are listed, and can be ended: see 10.4.9.'
  )
]
