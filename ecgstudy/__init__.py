"""Does adaptive weighting make contrastively pretrained ECG encoders more robust?"""

__version__ = "0.1.0"
