import { fileTypeFromBuffer, supportedExtensions, supportedMimeTypes } from 'file-type'
import { unsupportedMediaType } from './errors.ts'
import { extensionOf } from './file-names.ts'

/** As much of a file's beginning as is looked at. */
export const headBytes = 4100

/** Programs, installers and scripts: nothing that an agency's documents are, and everything that somebody may open by mistake. */
const dangerousExtensions = new Set(
  'exe dll com scr pif msi msp bat cmd ps1 psm1 vbs vbe js jse mjs wsf wsh hta cpl jar class apk app dmg pkg deb rpm sh bash elf so dylib lnk reg url scf inf chm'.split(
    ' '
  )
)
const dangerousTypes = new Set([
  'application/x-msdownload',
  'application/x-elf',
  'application/x-mach-binary',
  'application/x-msi',
  'application/java-vm',
  'application/java-archive',
  'application/vnd.android.package-archive',
  'application/x-apple-diskimage',
  'application/x-deb',
  'application/x-rpm',
  'application/x.ms.shortcut',
  'application/vnd.ms-htmlhelp',
  'application/wasm',
  'application/x-shockwave-flash'
])

/** Types that share their first bytes, so that one can't be told from another by them. */
const families: readonly { types: RegExp; extensions: string }[] = [
  {
    types:
      /^application\/(zip|x-zip-compressed|epub\+zip|vnd\.(openxmlformats|oasis|ms-\w+\.\w*macroenabled|google-earth\.kmz).*)$/i,
    extensions: 'zip docx docm dotx xlsx xlsm xltx pptx pptm potx ppsx odt ods odp odg epub kmz 3mf'
  },
  {
    types: /^application\/(x-cfb|msword|vnd\.ms-(excel|powerpoint|outlook|project|visio)|vnd\.visio)$/,
    extensions: 'cfb doc dot xls xlt ppt pps msg mpp vsd'
  },
  { types: /^(application|text)\/xml$|\+xml$/, extensions: 'xml svg rss atom kml gpx xsd xsl xhtml' },
  { types: /^image\/(jpe?g|pjpeg)$/, extensions: 'jpg jpeg jpe jfif' },
  { types: /^image\/(tiff|x-.*(raw|nef|cr2|arw|dng).*)$/, extensions: 'tif tiff nef cr2 arw dng' },
  {
    types: /^(video|audio)\/(mp4|x-m4[av]|quicktime|3gpp2?)$|^image\/hei[cf](-sequence)?$|^image\/avif$/,
    extensions: 'mp4 m4a m4b m4v mov qt 3gp 3g2 f4v heic heif avif'
  },
  { types: /^(video|audio)\/(x-matroska|matroska|webm)$/, extensions: 'mkv mka webm' },
  { types: /^(video|audio|application)\/(ogg|opus)(;.*)?$/, extensions: 'ogg oga ogv ogx opus spx' },
  { types: /^(video|audio|application)\/(x-ms-asf|vnd\.ms-asf|x-ms-wm[av])$/, extensions: 'asf wmv wma' },
  { types: /^(audio|video)\/(mpeg|mp[123]|x-mpeg|mpeg3|MP[12]P)$/, extensions: 'mp1 mp2 mp3 mpg mpeg mpe m2v' },
  { types: /^audio\/(wav|x-wav|vnd\.wave?)$/, extensions: 'wav' },
  { types: /^audio\/(x-)?aiff$/, extensions: 'aif aiff' },
  { types: /^audio\/(x-)?flac$/, extensions: 'flac' },
  { types: /^application\/(x-)?gzip$/, extensions: 'gz tgz' },
  { types: /^application\/(postscript|eps)$/, extensions: 'ps eps ai' },
  { types: /^image\/(x-icon|vnd\.microsoft\.icon)$/, extensions: 'ico' }
].map(({ types, extensions }) => ({ types, extensions: ` ${extensions} ` }))

const familyOfType = (type: string) => families.findIndex(({ types }) => types.test(type))
const familyOfExtension = (extension: string) =>
  families.findIndex((each) => each.extensions.includes(` ${extension} `))

/** Types that their first bytes give away; a claim of one of them can be checked. */
const checkable = (type: string) => supportedMimeTypes.has(type) || familyOfType(type) >= 0
const checkableExtension = (extension: string) =>
  (supportedExtensions as ReadonlySet<string>).has(extension) || familyOfExtension(extension) >= 0

/**
 * The type of a file by what is in it, checked against what its name and its sender say. Throws `unsupported_media_type` for
 * programs, and for a file that pretends to be another kind.
 */
export async function requireFileType(head: Buffer, name: string, declared: string | undefined): Promise<string> {
  const claimed = essence(declared)
  const extension = extensionOf(name)
  const found = await fileTypeFromBuffer(head).catch(() => undefined)
  if (
    dangerousExtensions.has(extension) ||
    (found && dangerousTypes.has(found.mime)) ||
    /^#!|^MZ/.test(head.toString('latin1', 0, 2))
  ) {
    throw unsupportedMediaType({ detail: 'programs and scripts are not accepted' })
  }
  const text = xmlText(head)
  const type = text ?? found?.mime
  if (type === undefined) {
    // an empty file is of any type
    const pretends = head.length > 0 && (checkable(claimed) || checkableExtension(extension))
    if (pretends && !/^(application|text)\/xml$|\+xml$/.test(claimed)) throw pretending(claimed, extension)
    return claimed
  }
  const family = familyOfType(type)
  const fits = (same: boolean, other: number) => same || (family >= 0 && family === other)
  if (checkable(claimed) && !fits(claimed === type, familyOfType(claimed))) throw pretending(claimed, extension)
  if (checkableExtension(extension) && !fits(extension === found?.ext, familyOfExtension(extension))) {
    throw pretending(claimed, extension)
  }
  // of a family the sender knows more than the first bytes tell
  return family >= 0 && familyOfType(claimed) === family ? claimed : type
}

function pretending(claimed: string, extension: string) {
  return unsupportedMediaType({
    detail: `what is in the file is neither ${claimed} nor what .${extension || 'its name'} stands for`
  })
}

/** XML that begins without its declaration. */
function xmlText(head: Buffer): string | undefined {
  return /^\ufeff?\s*<(\?xml|svg|!DOCTYPE svg)\b/i.test(head.toString('utf8', 0, 256)) ? 'application/xml' : undefined
}

/** A media type without its parameters, or what says nothing. */
function essence(declared: string | undefined): string {
  const type = (declared ?? '').split(';', 1)[0]?.trim().toLowerCase() ?? ''
  const known = /^[a-z]+\/[a-z0-9][a-z0-9.+_-]{0,100}$/.test(type) && !/^(multipart|message)\//.test(type)
  return known ? type : 'application/octet-stream'
}
