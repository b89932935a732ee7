import { createAggiosClient, localStorageStore, unwrap } from '@aggios/client'

/*
 * A page of the people of an agency, such as https://acme.app.aggios.test. The API of the agency is another host:
 * https://acme.aggios.test.
 */

const labels = location.hostname.split('.')
const baseUrl = `https://${labels[0]}.${labels.slice(-2).join('.')}`
const client = createAggiosClient({ baseUrl, store: localStorageStore() })

/** A parameter of the address at which the page was opened, which is taken out of the address bar. */
const parameters = new URLSearchParams(location.search)
history.replaceState(null, '', location.pathname)

Object.assign(window, { client, unwrap, parameters })
document.body.dataset.ready = 'yes'
