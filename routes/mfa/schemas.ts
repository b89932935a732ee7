import { type Static, Type } from '@sinclair/typebox'
import { recoveryCodeCount } from '../../src/auth/one-time-codes.ts'
import { Password, TokenReply } from '../schemas.ts'

const strict = { additionalProperties: false }

export const SecondFactor = Type.Object(
  {
    enabled: Type.Boolean({ description: 'Whether sign-in asks for a code', examples: [true] }),
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
export const MfaSignIn = Type.Object({ mfa_token: mfaToken, code }, { ...strict, title: 'MfaSignIn' })
export type MfaSignIn = Static<typeof MfaSignIn>

export const MfaReply = Type.Object(
  { ...TokenReply.properties, recovery_codes: Type.Optional(recoveryCodes) },
  { title: 'MfaReply', description: 'Tokens, and the recovery codes of a factor that was enrolled by this request' }
)

export const Reauthentication = Type.Object(
  { password: Type.Optional(Password), code: Type.Optional(code) },
  {
    ...strict,
    title: 'Reauthentication',
    description: 'Either the password or a code',
    examples: [{ password: 'correct horse battery staple' }]
  }
)
export type Reauthentication = Static<typeof Reauthentication>
