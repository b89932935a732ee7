import type { Call } from './authz-calls.ts'
import type { Reply } from './harness.ts'

/*
 * Secrets that pass through the server, collected while they do, and a search for each of them in what the server tells.
 */

/** Members of bodies and parameters of links whose values are secrets, whatever operation they belong to. */
const secretName =
  /^key$|password|token|secret|code|verifier|credential|signature|assertion|attestation|clientdata|authenticatordata|challenge|otpauth|state|nonce/i
/** Members with such a name that hold no secret. */
const harmless = new Set([
  'token_type',
  'code_challenge_method',
  'recovery_codes_left',
  'status_code',
  'previous_secret_until'
])

/** Members about a person: no secrets, and in no line either. */
const personalName = /^email$/

export type Canaries = ReturnType<typeof createCanaries>

export function createCanaries() {
  /** Each secret with what it is. */
  const found = new Map<string, string>()

  function add(what: string, secret: string | undefined): void {
    if (secret !== undefined && (secret.length >= 11 || /^\d{6,}$/.test(secret))) found.set(secret, what)
  }

  /** Adds the secrets in a value of JSON, at any depth. */
  function addFrom(what: string, value: unknown, name = ''): void {
    if (Array.isArray(value)) for (const each of value) addFrom(what, each, name)
    else if (typeof value === 'object' && value !== null) {
      // all that a passkey sends is about it
      for (const [key, each] of Object.entries(value)) addFrom(what, each, secretName.test(name) ? name : key)
    } else if (typeof value === 'string') {
      if (harmless.has(name)) return
      if (secretName.test(name) || personalName.test(name)) add(`${name} of ${what}`, value)
      // a link with a token in it
      if (/^\w+:\/\/[^ ]+\?/.test(value)) addFromLink(what, value)
    }
  }

  function addFromLink(what: string, link: string): void {
    for (const [name, value] of new URL(link).searchParams) {
      if (secretName.test(name) || /^x-amz-/i.test(name)) add(`${name} of the link of ${what}`, value)
    }
  }

  return {
    add,
    addFrom,
    addCall(what: string, { body, headers = {}, query = {}, caller }: Call): void {
      addFrom(what, body)
      addFrom(what, query)
      add(`the e-mail address of the caller of ${what}`, caller?.email)
      add(`the access token of ${what}`, caller?.token)
      add(`the refresh token of ${what}`, caller?.refresh_token)
      for (const name of ['authorization', 'dpop']) add(`${name} of ${what}`, headers[name]?.split(' ').at(-1))
      for (const pair of headers.cookie?.split('; ') ?? []) add(`a cookie of ${what}`, pair.split('=')[1])
    },
    addReply(what: string, reply: Reply): void {
      for (const { value } of reply.cookies) add(`a cookie of the answer to ${what}`, value)
      const { location } = reply.headers
      if (typeof location === 'string' && /^\w+:/.test(location)) addFromLink(what, location)
      // a problem document has a `code` that is none
      if (!/^application\/json/.test(String(reply.headers['content-type'])) || reply.statusCode >= 400) return
      addFrom(`the answer to ${what}`, reply.json())
    },
    count: () => found.size,
    /** What was found in the text, in any of the forms that a secret may take there. */
    search(text: string): string[] {
      return [...found].flatMap(([secret, what]) => {
        const form = [...formsOf(secret)].find((form) => contains(text, form))
        if (form === undefined) return []
        const line = text.split('\n').find((each) => contains(each, form)) ?? ''
        return [`${what}: ${line.slice(0, 600)}`]
      })
    }
  }
}

/** A code of six digits may be part of a number, which stands behind a colon, a digit or a dot. */
const contains = (text: string, form: string) =>
  /^\d{6,8}$/.test(form) ? new RegExp(`(?<![:\\d.])${form}(?!\\d)`).test(text) : text.includes(form)

/** The secret as it is, in JSON, in a URL, and encoded. */
function formsOf(secret: string): Iterable<string> {
  const bytes = Buffer.from(secret)
  const forms = [secret, JSON.stringify(secret).slice(1, -1), encodeURIComponent(secret), bytes.toString('hex')]
  // without the end, which depends on what follows
  for (const encoding of ['base64', 'base64url'] as const) {
    if (bytes.length >= 9) forms.push(bytes.subarray(0, bytes.length - (bytes.length % 3)).toString(encoding))
  }
  return new Set(forms)
}
