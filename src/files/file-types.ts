import { unsupportedMediaType } from '../http/problems.ts'
import { JobRefused } from '../subprocesses/sandbox.ts'
import { extensionOf } from './file-names.ts'

const unknownType = 'application/octet-stream'

/** As much of a file's beginning as is looked at. */
export const headBytes = 4100

/**
 * Programs, installers, scripts, shortcuts, and disks that open as a folder of them: nothing that an agency's documents are, and
 * everything that somebody may open by mistake.
 */
const dangerousExtensions = new Set(
  [
    'exe dll com scr pif msi msp mst cpl ocx sys drv bat cmd elf so dylib wasm',
    'ps1 psm1 psd1 ps1xml psc1 pssc cdxml vb vbs vbe js jse mjs ws wsf wsh wsc sct hta sh bash csh ksh zsh command tool',
    'scpt applescript workflow terminal jar class jnlp apk aab ipa xpi crx',
    'app dmg pkg deb rpm appimage msix msixbundle appx appxbundle appinstaller application appref-ms gadget diagcab',
    'lnk url webloc desktop reg scf inf chm hlp theme themepack one onepkg rdp',
    'library-ms search-ms searchconnector-ms settingcontent-ms xll xla xlam wll',
    'iso img vhd vhdx vmdk cab'
  ].flatMap((line) => line.split(' '))
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
  'application/x-ms-regedit',
  'application/x-google-chrome-extension',
  'application/x-xpinstall',
  'application/wasm',
  'application/x-shockwave-flash'
])

/**
 * Types that share their first bytes, so that one can't be told from another by them, and names that stand for them. `also` is
 * what programs write under these names besides; `text`: and plain text.
 */
type Family = { types: RegExp; extensions: string; also?: RegExp; text?: true }

const zipped =
  /^application\/(zip|x-zip-compressed|epub\+zip|vnd\.(openxmlformats|oasis|apple\.(pages|numbers|keynote)|ms-\w+\.\w*macroenabled|ms-visio\.\w+|google-earth\.kmz).*)$/
const compound = /^application\/(x-cfb|msword|vnd\.ms-(excel|powerpoint|outlook|project|publisher)|vnd\.visio)$/
const xml = /^(application|text)\/xml$|\+xml$/
/** What people can read; a program that they may start is none of it. */
const textual =
  /^text\/|^application\/(pdf|postscript|eps|rtf|(x-)?ndjson|json|yaml|xml|csv|pgp-encrypted|x-ms-regedit)$|\+(xml|json)$/

const families: readonly Family[] = [
  {
    types: zipped,
    extensions:
      'zip docx docm dotx dotm xlsx xlsm xltx pptx pptm potx ppsx ppsm odt ods odp odg ott ots otp epub kmz 3mf vsdx pages numbers key idml',
    // with a password they are of the older kind
    also: compound
  },
  {
    types: compound,
    extensions: 'doc dot xls xlt ppt pps msg mpp pub vsd',
    // what exports call .xls or .doc, and what Windows calls an Excel file where it is a table in text
    also: new RegExp(`${zipped.source}|${xml.source}|^application/rtf$`),
    text: true
  },
  { types: xml, extensions: 'xml svg rss atom kml gpx xsd xsl xhtml', text: true },
  {
    types: /^text\/|^application\/(x-)?(ndjson|json|yaml|csv)$|\+json$/,
    extensions: 'txt csv tsv md markdown json ndjson html htm css log srt vtt ics vcf yaml yml',
    also: new RegExp(`${xml.source}|^application/(postscript|eps|rtf|pgp-encrypted)$`),
    text: true
  },
  { types: /^application\/(x-)?pdf$/, extensions: 'pdf' },
  // programs for drawing write PDF under the older name
  { types: /^application\/(postscript|eps|illustrator)$/, extensions: 'ps eps ai', also: /^application\/pdf$/ },
  { types: /^(application|text)\/rtf$/, extensions: 'rtf' },
  { types: /^image\/(a?png|x-png|vnd\.mozilla\.apng)$/, extensions: 'png apng' },
  { types: /^image\/(p?jpe?g|jpg)$/, extensions: 'jpg jpeg jpe jfif' },
  { types: /^image\/gif$/, extensions: 'gif' },
  { types: /^image\/webp$/, extensions: 'webp' },
  { types: /^image\/(x-(ms-)?)?bmp$/, extensions: 'bmp dib' },
  { types: /^image\/vnd\.adobe\.photoshop$|^(image|application)\/(x-)?photoshop$/, extensions: 'psd psb' },
  { types: /^image\/(tiff|x-.*(raw|nef|cr2|arw|dng).*)$/, extensions: 'tif tiff nef cr2 arw dng' },
  { types: /^image\/(x-icon|vnd\.microsoft\.icon)$/, extensions: 'ico' },
  {
    types: /^(video|audio)\/(mp4|x-m4[abpv]|quicktime|3gpp2?|x-f4[abpv])$|^image\/(hei[cf](-sequence)?|avif)$/,
    extensions: 'mp4 m4a m4b m4p m4v mov qt 3gp 3g2 f4v heic heif avif'
  },
  { types: /^(video|audio)\/(x-)?(matroska|webm)$/, extensions: 'mkv mka webm' },
  { types: /^(video|audio|application)\/(ogg|opus)$/, extensions: 'ogg oga ogv ogx opus spx' },
  { types: /^(video|audio|application)\/(x-ms-asf|vnd\.ms-asf|x-ms-wm[av])$/, extensions: 'asf wmv wma' },
  { types: /^(audio|video)\/(mpeg3?|mp[1-3]p?|x-mpeg)$/, extensions: 'mp1 mp2 mp3 mpg mpeg mpe m2v' },
  { types: /^video\/(vnd\.avi|x-msvideo|avi|msvideo)$/, extensions: 'avi' },
  { types: /^audio\/(vnd\.|x-)?wave?$/, extensions: 'wav' },
  { types: /^audio\/(x-)?aiff$/, extensions: 'aif aiff' },
  { types: /^audio\/(x-)?flac$/, extensions: 'flac' },
  { types: /^application\/(x-)?gzip(-compressed)?$/, extensions: 'gz tgz' },
  { types: /^application\/(vnd\.rar|x-rar(-compressed)?)$/, extensions: 'rar' },
  { types: /^application\/x-7z-compressed$/, extensions: '7z' }
]

const familyOfType = (type: string) => families.find(({ types }) => types.test(type))
const familyOfExtension = (extension: string) =>
  families.find(({ extensions }) => extensions.split(' ').includes(extension))

/** What knows the types of first bytes: a process of its own, which is asked to. */
export type FindType = (head: Buffer) => Promise<string | undefined>

/**
 * The type of a file by what is in it, checked against what its name and its sender say. Throws `unsupported_media_type` for
 * programs, and for a file that pretends to be another kind.
 */
export async function requireFileType(
  head: Buffer,
  name: string,
  declared: string | undefined,
  detectFileType: FindType
): Promise<string> {
  const extension = extensionOf(name)
  const isText = looksLikeText(head)
  const given = essence(declared)
  // what a part of a form is when nobody says anything (RFC 7578, 4.4)
  const claimed = given === 'text/plain' && !isText ? unknownType : given
  const found = await findType(head, isText, detectFileType)
  if (dangerousExtensions.has(extension) || dangerousTypes.has(found ?? '') || head.toString('latin1', 0, 2) === '#!') {
    throw unsupportedMediaType({ detail: 'programs and scripts are not accepted' })
  }
  const isOf = (family: Family | undefined) => family === undefined || mayHold(family, found, isText)
  const wrong = [
    ...(isOf(familyOfType(claimed)) ? [] : [claimed]),
    ...(isOf(familyOfExtension(extension)) ? [] : [`what .${extension} stands for`])
  ]
  // an empty file is of any type
  if (head.length > 0 && wrong.length > 0) {
    throw unsupportedMediaType({ detail: `what is in the file is not ${wrong.join(', and not ')}` })
  }
  if (found === undefined) {
    // a claim that was let through and does not hold
    return head.length > 0 && compound.test(claimed) ? (extension === 'csv' ? 'text/csv' : 'text/plain') : claimed
  }
  // of a family the sender knows more than the first bytes tell
  return familyOfType(found)?.types.test(claimed) ? claimed : found
}

function mayHold({ types, also, text }: Family, found: string | undefined, isText: boolean): boolean {
  if (found === undefined) return isText && text === true
  return types.test(found) || also?.test(found) === true
}

/** What the first bytes say; nothing for text, which may begin with anything, and for what nobody knows. */
async function findType(head: Buffer, isText: boolean, detectFileType: FindType): Promise<string | undefined> {
  const start = head.toString('latin1', 0, 1024)
  if (isText && /^(\xef\xbb\xbf)?\s*<(\?xml|svg|!DOCTYPE svg)\b/i.test(start)) return 'application/xml'
  const found = await detectFileType(head).catch((err) => {
    if (err instanceof JobRefused) throw unsupportedMediaType({ detail: 'the file can not be read', cause: err })
    throw err
  })
  if (found !== undefined && !(isText && !textual.test(found))) return found
  // readers allow for something before it
  return start.includes('%PDF-') ? 'application/pdf' : undefined
}

/** No control characters but those that lay text out, in any encoding of one byte a character or in UTF-16. */
function looksLikeText(head: Buffer): boolean {
  const utf16 = /^(\xff\xfe|\xfe\xff)/.test(head.toString('latin1', 0, 2))
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what it looks for
  return utf16 || !/[\x00-\x07\x0b\x0e-\x1a\x1c-\x1f]/.test(head.toString('latin1'))
}

/** A media type without its parameters, or what says nothing. */
function essence(declared: string | undefined): string {
  const type = (declared ?? '').split(';', 1)[0]?.trim().toLowerCase() ?? ''
  const known = /^[a-z]+\/[a-z0-9][a-z0-9.+_-]{0,100}$/.test(type) && !/^(multipart|message)\//.test(type)
  return known ? type : unknownType
}
