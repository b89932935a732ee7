import { outboundFault } from '../http/outbound-requests.ts'

export const maxWebhookUrlLength = 2048
/** Ports below this one belong to other services than web servers. */
const firstFreePort = 1024

/**
 * Reads the address of an endpoint, in its normal form, or says what is wrong with it. A name is looked up when something is
 * sent, and may lead elsewhere by then, so only what is wrong with the text is found here.
 */
export function readWebhookUrl(
  text: string,
  { development }: { development: boolean }
): { url: string } | { fault: string } {
  if (!URL.canParse(text)) return { fault: 'must be an https address' }
  const url = new URL(text)
  const fault = outboundFault(url, { development })
  if (fault !== undefined) return { fault: `must be an https address of the public internet: ${fault}` }
  if (url.hash !== '') return { fault: 'must have no fragment' }
  if (url.port !== '' && Number(url.port) < firstFreePort) {
    return { fault: `must have no port, or one from ${firstFreePort} on` }
  }
  // an address of other letters may become longer
  if (url.href.length > maxWebhookUrlLength) return { fault: `must have at most ${maxWebhookUrlLength} characters` }
  return { url: url.href }
}
