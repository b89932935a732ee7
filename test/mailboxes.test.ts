import t from 'tap'
import { readEmail } from '../src/mail/mailboxes.ts'

t.test('an address that a provider has sent', async (t) => {
  t.test('is stored as one of a request would be', async (t) => {
    t.equal(readEmail('Ada.Lovelace+home@Acme.example'), 'ada.lovelace+home@acme.example')
  })
  t.test('is none when a request could not have it', async (t) => {
    const hostile = [
      ...['ada', 'ada@', '@acme.example', 'a@b@acme.example', '"victim@x.example y"@evil.example'],
      ...['a,b@acme.example', 'a;b@acme.example', '<ada@acme.example>', 'ada@acme.example\r\nbcc: x@x.example'],
      ...['victim＠x.example', 'ädä@acme.example', 'ada @acme.example', `${'a'.repeat(250)}@acme.example`, '']
    ]
    for (const text of hostile) t.equal(readEmail(text), undefined, JSON.stringify(text))
    t.equal(readEmail(null), undefined)
  })
})
