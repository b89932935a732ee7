import { type Static, Type } from '@sinclair/typebox'
import { locales } from '../../src/mail/layout.ts'
import { Id, maxAllowedOrigins, Name, Nullable, StringEnum } from '../schemas.ts'

const strict = { additionalProperties: false }

export const TenantPatch = Type.Object(
  {
    name: Type.Optional({ ...Name, examples: ['Acme'] }),
    settings: Type.Optional(
      Type.Object(
        {
          allowed_origins: Type.Optional(
            Type.Unsafe<string[] | null>({
              type: ['array', 'null'],
              items: { type: 'string', maxLength: 255, format: 'web-origin' },
              maxItems: maxAllowedOrigins,
              uniqueItems: true,
              description:
                'Origins that may call this agency from a browser or from the web view of an app (`capacitor://localhost`); null removes all',
              examples: [['https://app.acme.example']]
            })
          ),
          mfa_required_from: Type.Optional(
            Type.Unsafe<string | null>({
              type: ['string', 'null'],
              format: 'date-time',
              description:
                'From then on a session in this agency needs a second factor: sign-in and refresh ask for it. Null demands none',
              examples: [null]
            })
          ),
          locale: Type.Optional(
            Nullable(
              StringEnum(locales, {
                title: 'Locale',
                description: 'Language of mails; null is English',
                examples: ['pt-BR']
              })
            )
          )
        },
        strict
      )
    )
  },
  { ...strict, title: 'TenantPatch' }
)
export type TenantPatch = Static<typeof TenantPatch>

export const Transfer = Type.Object({ user_id: Id }, { ...strict, title: 'Transfer' })

/** Confirms a deletion by the slug, so that nobody deletes the wrong agency. */
export const Deletion = Type.Object(
  { slug: Type.String({ minLength: 1, maxLength: 63, examples: ['acme'] }) },
  { ...strict, title: 'Deletion' }
)
