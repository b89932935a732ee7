import { type Static, Type } from '@sinclair/typebox'
import { maxDomainLength } from '../../src/tenancy/domain-names.ts'
import { Line, Nullable, Page, StringEnum, Timestamp } from '../schemas.ts'

const DomainName = Line({
  minLength: 1,
  maxLength: maxDomainLength,
  description: 'In any case. A name with other letters than ASCII becomes its IDNA form.',
  examples: ['acme.example']
})

export const DomainInput = Type.Object({ name: DomainName }, { additionalProperties: false, title: 'DomainInput' })

const DomainRecord = Type.Object(
  {
    type: StringEnum(['TXT'], { examples: ['TXT'] }),
    name: Type.String({ examples: ['_aggios-challenge.acme.example'] }),
    value: Type.String({ examples: ['aggios-domain=7d0c2f6ab1e94a5f8f1c3f0f3c2b9e11'] })
  },
  { title: 'DomainRecord', description: 'The record of DNS that proves the domain. It must stay there.' }
)

export const Domain = Type.Object(
  {
    name: Type.String({ examples: ['acme.example'] }),
    status: StringEnum(['pending', 'verified', 'failing'], {
      title: 'DomainStatus',
      description:
        '`pending`: not proven, or not any more. `verified`: proven. `failing`: still proven, but the record was missing lately.',
      examples: ['verified']
    }),
    record: DomainRecord,
    created_at: Timestamp,
    verified_at: Nullable(Timestamp),
    checked_at: Nullable(Timestamp)
  },
  { title: 'Domain' }
)
export type Domain = Static<typeof Domain>
export const DomainPage = Page(Domain, 'DomainPage')

export const DomainParams = Type.Object({ name: DomainName })
