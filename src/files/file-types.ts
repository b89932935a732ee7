import { unsupportedMediaType } from '../http/problems.ts'
import { JobRefused } from '../subprocesses/sandbox.ts'
import { extensionOf } from './file-names.ts'

const unknownType = 'application/octet-stream'

/** The number of bytes at the beginning of a file that are examined. */
export const headBytes = 4100

/**
 * Extensions of programs, installers, scripts, shortcuts, and of disk images that open as a folder of these. They are
 * no documents of an agency, and somebody may start them by mistake.
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
 * Types that can't be told apart by their first bytes, with their extensions. `also`: other types that programs write
 * with these extensions. `text`: plain text is one of these.
 */
type Family = { types: RegExp; extensions: string; also?: RegExp; text?: true }

const zipped =
  /^application\/(zip|x-zip-compressed|epub\+zip|vnd\.(openxmlformats|oasis|apple\.(pages|numbers|keynote)|ms-\w+\.\w*macroenabled|ms-visio\.\w+|google-earth\.kmz).*)$/
const compound = /^application\/(x-cfb|msword|vnd\.ms-(excel|powerpoint|outlook|project|publisher)|vnd\.visio)$/
const xml = /^(application|text)\/xml$|\+xml$/
/** Types of readable text. No type of a program that can be started is one of them. */
const textual =
  /^text\/|^application\/(pdf|postscript|eps|rtf|(x-)?ndjson|json|yaml|xml|csv|pgp-encrypted|x-ms-regedit)$|\+(xml|json)$/

const families: readonly Family[] = [
  {
    types: zipped,
    extensions:
      'zip docx docm dotx dotm xlsx xlsm xltx pptx pptm potx ppsx ppsm odt ods odp odg ott ots otp epub kmz 3mf vsdx pages numbers key idml',
    // documents with a password have the compound format
    also: compound
  },
  {
    types: compound,
    extensions: 'doc dot xls xlt ppt pps msg mpp pub vsd',
    // exports name other formats .xls or .doc, and Windows declares a text table as an Excel file
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
  // drawing programs write PDF with these extensions
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

/** Detects a type by the first bytes of a file. The product does this in a subprocess. */
export type DetectType = (head: Buffer) => Promise<string | undefined>

/**
 * Returns the media type of a file by its content, after comparing it with the file's extension and its declared type.
 * Throws `unsupported_media_type` for programs, and for a file whose extension or declared type does not match its
 * content.
 */
export async function requireFileType(
  head: Buffer,
  name: string,
  declared: string | undefined,
  detectType: DetectType
): Promise<string> {
  const extension = extensionOf(name)
  const isText = looksLikeText(head)
  const given = essence(declared)
  // text/plain is the default type of a form's part (RFC 7578, 4.4), so it says nothing about a file that is no text
  const claimed = given === 'text/plain' && !isText ? unknownType : given
  const found = await findType(head, isText, detectType)
  if (dangerousExtensions.has(extension) || dangerousTypes.has(found ?? '') || head.toString('latin1', 0, 2) === '#!') {
    throw unsupportedMediaType({ detail: 'programs and scripts are not accepted' })
  }
  const matches = (family: Family | undefined) => family === undefined || isOfFamily(family, found, isText)
  const wrong = [
    ...(matches(familyOfType(claimed)) ? [] : [claimed]),
    ...(matches(familyOfExtension(extension)) ? [] : [`what .${extension} stands for`])
  ]
  // an empty file is of any type
  if (head.length > 0 && wrong.length > 0) {
    throw unsupportedMediaType({ detail: `what is in the file is not ${wrong.join(', and not ')}` })
  }
  if (found === undefined) {
    // text that is declared as a compound document is allowed, and stored as the text that it is
    return head.length > 0 && compound.test(claimed) ? (extension === 'csv' ? 'text/csv' : 'text/plain') : claimed
  }
  // within a family the declared type is more precise than the first bytes
  return familyOfType(found)?.types.test(claimed) ? claimed : found
}

function isOfFamily({ types, also, text }: Family, found: string | undefined, isText: boolean): boolean {
  if (found === undefined) return isText && text === true
  return types.test(found) || also?.test(found) === true
}

/** The type by the first bytes. Undefined for plain text, which may begin with anything, and for unknown types. */
async function findType(head: Buffer, isText: boolean, detectType: DetectType): Promise<string | undefined> {
  const start = head.toString('latin1', 0, 1024)
  if (isText && /^(\xef\xbb\xbf)?\s*<(\?xml|svg|!DOCTYPE svg)\b/i.test(start)) return 'application/xml'
  const found = await detectType(head).catch((err) => {
    if (err instanceof JobRefused) throw unsupportedMediaType({ detail: 'the file can not be read', cause: err })
    throw err
  })
  if (found !== undefined && !(isText && !textual.test(found))) return found
  // PDF readers accept other bytes before the header
  return start.includes('%PDF-') ? 'application/pdf' : undefined
}

/** Whether the bytes are UTF-16, or contain no control characters except those that lay out text. */
function looksLikeText(head: Buffer): boolean {
  const utf16 = /^(\xff\xfe|\xfe\xff)/.test(head.toString('latin1', 0, 2))
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what it looks for
  return utf16 || !/[\x00-\x07\x0b\x0e-\x1a\x1c-\x1f]/.test(head.toString('latin1'))
}

/** Returns a media type without its parameters, or application/octet-stream for a missing or invalid one. */
function essence(declared: string | undefined): string {
  const type = (declared ?? '').split(';', 1)[0]?.trim().toLowerCase() ?? ''
  const known = /^[a-z]+\/[a-z0-9][a-z0-9.+_-]{0,100}$/.test(type) && !/^(multipart|message)\//.test(type)
  return known ? type : unknownType
}
