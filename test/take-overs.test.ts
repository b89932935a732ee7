import { createHash } from 'node:crypto'
import t from 'tap'
import { allRows } from './harness.ts'
import { createTakeOverWorld, type TakeOverHole } from './take-over-world.ts'
import { attacksAtProviders } from './take-overs-at-providers.ts'
import { attacksOnAddresses } from './take-overs-of-addresses.ts'
import { attacksOnFlows } from './take-overs-of-flows.ts'
import { attacksOnSessions } from './take-overs-of-sessions.ts'

/*
 * Scripted attacks on accounts, each in an agency of its own. After an attack every token that the attacker has got is
 * tried, and so are the attacker's password and identity at the door of the victim. Then the victim comes in honestly.
 */

const attacks = [...attacksAtProviders, ...attacksOnFlows, ...attacksOnAddresses, ...attacksOnSessions]

t.test('no attack takes an account over', async (t) => {
  const world = await createTakeOverWorld(t)
  let succeeded = 0
  for (const attack of attacks) {
    await t.test(attack.title, async (t) => {
      const { gains, surprises, control } = await world.play(attack)
      if (gains.length > 0) succeeded++
      t.strictSame(gains, [], 'the attacker has nothing')
      t.strictSame(surprises, [], 'and was refused for the reason that was meant')
      t.equal(control, 'the victim comes in')
    })
  }
  t.comment(`attempted ${attacks.length}, succeeded ${succeeded}`)
  t.ok(attacks.length >= 30)
  t.equal(new Set(attacks.map(({ title }) => title)).size, attacks.length, 'no attack is counted twice')
  t.equal(succeeded, 0)
})

/** Holes that the product does not have, and the attack that succeeds by each. */
const holes: Record<string, { by: string; hole: TakeOverHole }> = {
  'what was used is good again': {
    by: 'a sign-in code and its verifier, after the victim has used them',
    hole: {
      plant: `create or replace function use_once(mark uuid, life interval) returns boolean
        language sql volatile security definer begin atomic select true; end`
    }
  },
  'an address says who it is': {
    by: 'an address at the provider that is changed to the victim’s',
    hole: {
      after: (app) => {
        const { redeem } = app.providers
        app.providers.redeem = async (...asked) => {
          const profile = await redeem(...asked)
          const [known] = await allRows(
            app.database,
            'select i.subject from user_identities i join users u on u.id = i.user_id where u.email = $1',
            [profile.email]
          )
          return { ...profile, subject: known?.subject ?? profile.subject }
        }
      }
    }
  },
  'a sign-in leads anywhere': {
    by: 'an open redirect to the attacker’s page',
    hole: { after: (app) => void (app.config.corsOrigins as string[]).push('https://evil.example') }
  },
  'a code is good for any client': {
    by: 'a stolen sign-in code, without the verifier',
    hole: (() => {
      let verifier = ''
      return {
        before: (app) =>
          app.addHook('preHandler', async ({ body }) => {
            verifier = (body as { code_verifier?: string } | null)?.code_verifier ?? ''
          }),
        after: (app) => {
          const { open } = app.oauth.codes
          app.oauth.codes.open = (token) => {
            const code = open(token)
            return code && { ...code, code_challenge: createHash('sha256').update(verifier).digest('base64url') }
          }
        }
      } satisfies TakeOverHole
    })()
  },
  'a new password removes the second factor': {
    by: 'the mailbox of a lost domain, against a second factor',
    hole: {
      plant: `create function forget_factor() returns trigger language plpgsql
          as 'begin new.mfa_enabled_at := null; return new; end';
        create trigger forget_factor before update of password_hash on users for each row execute function forget_factor()`
    }
  },
  'a provider that is demanded is not': {
    by: 'a password that is known, where the agency demands its provider',
    hole: {
      plant: `create or replace function required_provider(break_glass boolean, provider uuid) returns uuid
        language sql stable return null::uuid`
    }
  }
}

t.test('an attack succeeds where there is a hole', async (t) => {
  for (const [title, { by, hole }] of Object.entries(holes)) {
    await t.test(title, async (t) => {
      const attack = attacks.find((each) => each.title === by)
      if (!attack) throw new Error(`there is no attack "${by}"`)
      const world = await createTakeOverWorld(t, hole)
      const { gains } = await world.play(attack)
      t.not(gains.length, 0, gains.join())
    })
  }
})
