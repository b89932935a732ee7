import { type Static, Type } from '@sinclair/typebox'
import { recoveryCodeCount } from '../../src/auth/one-time-codes.ts'
import {
  AuthenticatorBytes,
  Challenge,
  ClientData,
  CredentialDescriptor,
  credentialMembers,
  Id,
  Line,
  Nullable,
  PasskeyAssertion,
  PasskeyTimeout,
  Password,
  RpId,
  StringEnum,
  Timestamp,
  TokenReply
} from '../schemas.ts'

const strict = { additionalProperties: false }

export const SecondFactor = Type.Object(
  {
    enabled: Type.Boolean({ description: 'Whether sign-in asks for a second factor', examples: [true] }),
    factors: Type.Array(StringEnum(['totp', 'passkey'], { title: 'FactorKind' }), {
      maxItems: 2,
      description: 'What it asks for: a code of an app, a passkey, or one of both',
      examples: [['totp', 'passkey']]
    }),
    recovery_codes_left: Type.Integer({ minimum: 0, maximum: recoveryCodeCount, examples: [9] })
  },
  { title: 'SecondFactor' }
)

/** The secret is shown this once; an app that has lost it needs a new one. */
export const FactorSecret = Type.Object(
  {
    secret: Type.String({
      description: 'To be typed into an authenticator app, in base32',
      examples: ['JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP']
    }),
    uri: Type.String({
      description: 'To be shown as a QR code',
      examples: ['otpauth://totp/Aggios:ada%40example.com?issuer=Aggios&secret=JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP']
    })
  },
  { title: 'FactorSecret' }
)

const recoveryCodes = Type.Array(Type.String(), {
  maxItems: recoveryCodeCount,
  description: 'Each replaces a code of the app once. They are shown now and never again.',
  examples: [['x7kq-2mfa-r4hb-w5tz', 'b3ne-y6jd-q2vl-c7su']]
})
export const RecoveryCodes = Type.Object({ recovery_codes: recoveryCodes }, { title: 'RecoveryCodes' })

const code = Type.String({
  minLength: 6,
  maxLength: 32,
  description: 'Six digits of the authenticator app, each good once, or a recovery code',
  examples: ['123456']
})
export const FactorCode = Type.Object({ code }, { ...strict, title: 'FactorCode' })

const mfaToken = Type.String({
  minLength: 1,
  maxLength: 1024,
  description: '`mfa_token` of the problem `mfa_required`',
  examples: ['Gm9v…']
})
export const MfaEnrollment = Type.Object({ mfa_token: mfaToken }, { ...strict, title: 'MfaEnrollment' })
export type MfaEnrollment = Static<typeof MfaEnrollment>
/** Exactly one of both. */
const proof = { code: Type.Optional(code), passkey: Type.Optional(PasskeyAssertion) }
export const FactorProof = Type.Object(proof, {
  ...strict,
  title: 'FactorProof',
  description: 'Either a code or a passkey',
  examples: [{ code: '123456' }]
})
export type FactorProof = Static<typeof FactorProof>
export const MfaSignIn = Type.Object(
  { mfa_token: mfaToken, ...proof },
  {
    ...strict,
    title: 'MfaSignIn',
    description: 'The token, and either a code or a passkey',
    examples: [{ mfa_token: 'Gm9v…', code: '123456' }]
  }
)
export type MfaSignIn = Static<typeof MfaSignIn>

export const MfaReply = Type.Object(
  { ...TokenReply.properties, recovery_codes: Type.Optional(recoveryCodes) },
  { title: 'MfaReply', description: 'Tokens, and the recovery codes of a factor that was enrolled by this request' }
)

export const Reauthentication = Type.Object(
  { password: Type.Optional(Password), ...proof },
  {
    ...strict,
    title: 'Reauthentication',
    description: 'Either the password, a code or a passkey',
    examples: [{ password: 'correct horse battery staple' }]
  }
)
export type Reauthentication = Static<typeof Reauthentication>

const passkeyName = Line({ 'x-trimmed': true, minLength: 1, maxLength: 100, examples: ["Ada's phone"] })

export const Passkey = Type.Object(
  {
    id: Id,
    name: passkeyName,
    device_type: StringEnum(['single_device', 'multi_device'], {
      description: 'Whether the passkey stays on one device, or is copied to others of the person',
      examples: ['multi_device']
    }),
    backed_up: Type.Boolean({ description: 'Whether there is a copy by now', examples: [true] }),
    created_at: Timestamp,
    last_used_at: Nullable(Timestamp)
  },
  { title: 'Passkey' }
)
export const PasskeyList = Type.Object({ data: Type.Array(Passkey, { maxItems: 20 }) }, { title: 'PasskeyList' })
export const PasskeyId = Type.Object({ id: Id })
export const PasskeyPatch = Type.Object({ name: passkeyName }, { ...strict, title: 'PasskeyPatch' })

const registration = Type.Object(
  {
    ...credentialMembers,
    response: Type.Object(
      {
        clientDataJSON: ClientData,
        attestationObject: AuthenticatorBytes,
        transports: Type.Optional(
          Type.Array(Type.String({ maxLength: 32, examples: ['internal'] }), {
            maxItems: 16,
            examples: [['internal']]
          })
        ),
        authenticatorData: Type.Optional(AuthenticatorBytes),
        publicKey: Type.Optional(Nullable(AuthenticatorBytes)),
        publicKeyAlgorithm: Type.Optional(Type.Integer({ examples: [-7] }))
      },
      strict
    )
  },
  {
    ...strict,
    title: 'PasskeyRegistration',
    description: 'What `navigator.credentials.create` returned, as its `toJSON()` writes it'
  }
)

export const PasskeyInput = Type.Object(
  { name: passkeyName, passkey: registration },
  { ...strict, title: 'PasskeyInput' }
)
export type PasskeyInput = Static<typeof PasskeyInput>
export const PasskeyEnrollment = Type.Object(
  { mfa_token: mfaToken, name: passkeyName, passkey: registration },
  { ...strict, title: 'PasskeyEnrollment' }
)
export type PasskeyEnrollment = Static<typeof PasskeyEnrollment>

export const AddedPasskey = Type.Object(
  { ...Passkey.properties, recovery_codes: Type.Optional(recoveryCodes) },
  { title: 'AddedPasskey', description: 'The passkey, and recovery codes for somebody who had none' }
)

/** `PublicKeyCredentialCreationOptionsJSON` of WebAuthn. */
export const PasskeyCreationOptions = Type.Object(
  {
    challenge: Challenge,
    rp: Type.Object({ name: Type.String({ examples: ['Aggios'] }), id: RpId }),
    user: Type.Object({
      id: Type.String({ examples: ['AZosTnsdfD6fAD1aGyw9Xg'] }),
      name: Type.String({ examples: ['ada@example.com'] }),
      displayName: Type.String({ examples: ['Ada Lovelace'] })
    }),
    pubKeyCredParams: Type.Array(
      Type.Object({
        alg: Type.Integer({ examples: [-7] }),
        type: StringEnum(['public-key'], { examples: ['public-key'] })
      }),
      { maxItems: 3 }
    ),
    timeout: PasskeyTimeout,
    attestation: Type.String({ examples: ['none'] }),
    excludeCredentials: Type.Array(CredentialDescriptor, { maxItems: 20 }),
    authenticatorSelection: Type.Object({
      residentKey: Type.String({ examples: ['required'] }),
      requireResidentKey: Type.Boolean({ examples: [true] }),
      userVerification: Type.String({ examples: ['required'] })
    })
  },
  { title: 'PasskeyCreationOptions', description: 'For `PublicKeyCredential.parseCreationOptionsFromJSON`' }
)
